"""What layers, models, steps and samplers refuse: by function, calls and the words of
the error."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxrnn
from jaxrnn import metrics, models, placement, training
from jaxrnn.recurrent import Recurrent
from jaxrnn.regularizers import weight_drop

KEY = jax.random.key(0)
X = jnp.zeros((2, 5, 3))
LENGTHS = jnp.array([5, 9])
LOGITS = jnp.zeros((2, 4))
MESH = placement.data_mesh(1)
OPTIMIZER = optax.sgd(0.1)
CELL = jaxrnn.GRUCell(4)
MEAN = metrics.Mean.of(X)
GRU = jaxrnn.GRU(4)
BIDIRECTIONAL = jaxrnn.Bidirectional(GRU, GRU)
CLASSIFIER = models.SequenceClassifier(9, 4, GRU)
LANGUAGE = models.LanguageModel(9, 4, GRU)
TOKENS = jnp.zeros((2, 5), jnp.int32)


def call(module, *arguments, method=None, **options):
    """Initializes the module with a call of one of its methods."""
    return module.init(KEY, *arguments, method=method, **options)


def layer_rows(layer, cells):
    """For anything with the three methods of a layer."""
    state = layer.initial_state((2,))
    return {
        "__call__": [
            (lambda: call(layer, X[0, 0]), "inputs", "(3,)"),
            (lambda: call(layer, X.astype(int)), "inputs", "int32"),
            (lambda: call(layer, X, state=state[:0]), "state", "cell"),
            (
                lambda: call(layer, X, state=layer.initial_state((3,))),
                "state",
                "(3, 4)",
            ),
            (lambda: call(layer, X, state=[*state]), "state", "tuple"),
            (lambda: call(layer, X, state), "lengths", "tuple", "state=", "Stack"),
            (lambda: call(layer, X, lengths=LENGTHS), "length 9"),
            (lambda: call(layer, X, lengths=LENGTHS[:1]), "lengths", "(1,)"),
            (lambda: call(layer, X, segment_ids=X > 0), "segment_ids", "bool"),
        ],
        "initial_state": [
            (lambda: layer.initial_state(2), "batch_shape", "got 2"),
            (lambda: layer.initial_state((-1,)), "batch_shape", "got -1"),
            (lambda: layer.initial_state((2.5,)), "batch_shape", "got 2.5"),
        ],
    } | (
        {}
        if "b" in cells
        else {
            "project": [
                (lambda: call(layer, X > 0, method="project"), "inputs", "bool"),
            ],
            "step": [
                (lambda: call(layer, X[:, 0], (), method="step"), "state", "cell"),
                (
                    lambda: call(
                        layer, X[:, 0], layer.initial_state((3,)), method="step"
                    ),
                    "state",
                    "(3, 4)",
                ),
            ],
        }
    )


def prefixed(prefix, rows):
    return {f"{prefix}.{name}": row for name, row in rows.items()}


def cell_rows(kind):
    return [
        (lambda: kind(0), "features", "got 0"),
        (lambda: kind("4"), "features", "'4'"),
        (lambda: kind(4).initial_state(2), "batch_shape", "got 2"),
        (
            lambda: call(kind(4), kind(4).initial_state((2,)), X[0] > 0),
            "inputs",
            "bool",
        ),
    ]


def layer_kinds(kind):
    return [
        (lambda: kind(-1), "features", "got -1"),
        (lambda: kind(2.5), "features", "got 2.5"),
        (lambda: kind(4, num_layers=0), "num_layers", "got 0"),
        (lambda: kind(4, dropout=1.5), "dropout", "got 1.5"),
        (lambda: kind(4, dropout="1"), "dropout", "'1'"),
        (lambda: kind(4, remat_chunk=0), "remat_chunk", "got 0"),
        (lambda: kind(4, backend="cudnn"), "backend", "'cudnn'"),
    ]


def classifier(**options):
    given = {"vocab_size": 9, "embed_features": 4, "encoder": GRU} | options
    return models.SequenceClassifier(**given)


def language(**options):
    given = {"vocab_size": 9, "embed_features": 4, "encoder": GRU} | options
    return models.LanguageModel(**given)


def train_once(loss):
    step = training.make_train_step(loss, OPTIMIZER, MESH)
    return step(training.TrainState.create({}, OPTIMIZER, KEY), {"x": X})


REFUSED = {
    **{
        name: layer_kinds(getattr(jaxrnn, name)) + more
        for name, more in {
            "RNN": [
                (
                    lambda: call(jaxrnn.RNN(4, activation="gelu"), X),
                    "activation",
                    "got 'gelu'",
                )
            ],
            "LSTM": [
                (lambda: call(jaxrnn.LSTM(4, proj_size=5), X), "proj_size", "got 5")
            ],
            "GRU": [],
        }.items()
    },
    **{
        f"{name}": cell_rows(getattr(jaxrnn, name)) + more
        for name, more in {
            "RNNCell": [
                (lambda: jaxrnn.RNNCell(4, activation=3), "activation", "got 3")
            ],
            "LSTMCell": [
                (lambda: jaxrnn.LSTMCell(4, proj_size=-1), "proj_size", "got -1")
            ],
            "GRUCell": [],
            "ResetBeforeGRUCell": [],
        }.items()
    },
    "Recurrent": [
        (lambda: Recurrent(GRU), "cell", "GRU"),
        (lambda: Recurrent(4), "cell", "got 4"),
        (lambda: Recurrent(CELL, backend="cudnn"), "backend", "'cudnn'"),
        (
            lambda: Recurrent(jaxrnn.cells.MGUCell(4), backend="native"),
            "backend='native'",
            "MGUCell",
        ),
        (
            lambda: Recurrent(CELL, backend="fused", zoneout_h=0.1),
            "backend='fused'",
            "GRUCell with zoneout_h",
        ),
        (lambda: Recurrent(CELL, remat_chunk=0), "remat_chunk", "got 0"),
        (lambda: Recurrent(CELL, remat_chunk=2.5), "remat_chunk", "got 2.5"),
    ],
    **prefixed("Recurrent", layer_rows(Recurrent(CELL), "f")),
    "Bidirectional": [
        (lambda: jaxrnn.Bidirectional(GRU, GRU, merge="max"), "merge", "'max'"),
        (lambda: jaxrnn.Bidirectional(GRU, None), "backward", "None"),
        (lambda: jaxrnn.Bidirectional(4, GRU), "forward", "got 4"),
    ],
    **prefixed("Bidirectional", layer_rows(BIDIRECTIONAL, "fb")),
    "Bidirectional.step": [
        (lambda: call(BIDIRECTIONAL, X[0], (), method="step"), "bidirectional")
    ],
    "Stack": [
        (lambda: jaxrnn.Stack([]), "stack", "none"),
        (lambda: jaxrnn.Stack(GRU, GRU), "layers", "Stack([first, second])"),
        (lambda: jaxrnn.Stack([GRU, "gru"]), "layers", "'gru'"),
        (lambda: jaxrnn.Stack([CELL]), "layers", "Recurrent(GRUCell"),
        (lambda: jaxrnn.Stack([GRU, nn.Dense(4)]), "layers", "Dense", "step"),
        (lambda: jaxrnn.Stack([GRU], dropout=-0.5), "dropout", "got -0.5"),
    ],
    **prefixed("Stack", layer_rows(jaxrnn.Stack([GRU]), "f")),
    "models.SequenceClassifier": [
        (lambda: classifier(vocab_size=0), "vocab_size", "got 0"),
        (lambda: classifier(embed_features=2.5), "embed_features", "2.5"),
        (lambda: classifier(encoder="gru"), "encoder", "'gru'"),
        (lambda: classifier(encoder=nn.Dense(4)), "encoder", "Dense", "step"),
        (lambda: classifier(num_classes=0), "num_classes", "0"),
        (lambda: classifier(dropout=2), "dropout", "got 2"),
        (lambda: classifier(word_dropout=-1), "word_dropout", "got -1"),
        (lambda: classifier(pooling=()), "pooling", "got ()"),
    ],
    "models.SequenceClassifier.__call__": [
        (lambda: call(CLASSIFIER, X), "tokens", "float32"),
        (lambda: call(CLASSIFIER, TOKENS, lengths=LENGTHS), "length 9"),
        (lambda: call(CLASSIFIER, TOKENS, (X[0],)), "lengths", "tuple", "Stack"),
        (lambda: call(CLASSIFIER, TOKENS, num_segments=0), "num_segments", "got 0"),
        (lambda: call(classifier(pooling=("sum",)), TOKENS), "pooling", "'sum'"),
    ],
    "models.SequenceClassifier.embed_tokens": [
        (lambda: call(CLASSIFIER, X, method="embed_tokens"), "tokens", "float32"),
    ],
    "models.SequenceClassifier.from_embeddings": [
        (lambda: call(CLASSIFIER, TOKENS, method="from_embeddings"), "inputs", "int"),
        (lambda: call(CLASSIFIER, X, LENGTHS, method="from_embeddings"), "length 9"),
    ],
    "models.LanguageModel": [
        (lambda: language(vocab_size=-1), "vocab_size", "got -1"),
        (lambda: language(embed_features="64"), "embed_features", "'64'"),
        (lambda: language(encoder=None), "encoder", "None"),
        (lambda: language(encoder=CELL), "encoder", "Recurrent(GRUCell"),
        (lambda: language(dropout=1.5), "dropout", "got 1.5"),
    ],
    "models.LanguageModel.__call__": [
        (lambda: call(LANGUAGE, X), "tokens", "float32"),
        (lambda: call(LANGUAGE, TOKENS, state=()), "got 0 entries"),
        (
            lambda: call(LANGUAGE, TOKENS, LANGUAGE.initial_state((2,))),
            "tuple",
            "Stack",
        ),
    ],
    "models.LanguageModel.pre_logits": [
        (lambda: call(LANGUAGE, X, method="pre_logits"), "tokens", "float32"),
    ],
    "models.LanguageModel.step": [
        (lambda: call(LANGUAGE, X[0], (), method="step"), "tokens", "float32")
    ],
    "models.LanguageModel.initial_state": [
        (lambda: LANGUAGE.initial_state(2), "batch_shape", "got 2")
    ],
    "regularizers.weight_drop": [
        (lambda: weight_drop({"w_h": X}, 1.0, KEY), "rate", "1.0"),
        (lambda: weight_drop({"w_h": X}, "half", KEY), "rate", "'half'"),
        (lambda: weight_drop({"w": X}, 0.5, KEY), "w_h", "['w']"),
    ],
    "training.TrainState.create": [
        (lambda: training.TrainState.create({}, None, KEY), "optimizer", "None"),
    ],
    "training.make_train_step": [
        (lambda: training.make_train_step(None, OPTIMIZER, MESH), "loss", "None"),
        (lambda: train_once(lambda *_: {"nats": 0}), "loss", "int"),
        (lambda: train_once(lambda *_: {"nats": MEAN}), "loss", "['nats']"),
    ],
    "training.make_stateful_train_step": [
        (lambda: training.make_stateful_train_step(3, OPTIMIZER, MESH), "loss", "got 3")
    ],
    "training.make_eval_step": [
        (lambda: training.make_eval_step("accuracy", MESH), "metrics", "'accuracy'")
    ],
    "training.make_stateful_eval_step": [
        (lambda: training.make_stateful_eval_step({}, MESH), "metrics", "got {}")
    ],
}
