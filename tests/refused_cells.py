"""What cells, the functions beneath them, weights of other libraries and exported
models refuse: by function, calls and the words of the error."""

import functools
import tempfile

import jax
import jax.numpy as jnp

import jaxrnn
from jaxrnn import cells, functional, models, regularizers, serving, weights
from jaxrnn.linear_recurrence import linear_recurrence
from tests import refused_data
from tests.refused_models import layer_kinds, layer_rows, prefixed

KEY = jax.random.key(0)
X = jnp.zeros((2, 5, 3))
HALF = X.astype(jnp.bfloat16)
VALID = jnp.ones((2, 5), bool)
TOKENS = jnp.zeros((1, 1), int)
GRU, LSTM = jaxrnn.GRU(4), jaxrnn.LSTM(4)
CLASSIFIER = models.SequenceClassifier(9, 4, GRU)
LANGUAGE = models.LanguageModel(9, 4, GRU)


def made(kind, *arguments, **options):
    """A call that makes it, later."""
    return functools.partial(kind, *arguments, **options)


# By cell, options out of their range: name, value.
OPTIONS = {
    "AntisymmetricRNNCell": [("step_size", 0), ("diffusion", -0.5)],
    "Cell": [("use_bias", 16)],
    "CfCCell": [("dt", -1.0), ("hidden_features", 0)],
    "CoRNNCell": [("dt", 0), ("gamma", -1.0), ("epsilon", "5")],
    "ConvLSTMCell": [
        ("kernel_size", 3),
        ("kernel_size", (0,)),
        ("kernel_size", ()),
        ("forget_bias", "1"),
    ],
    "CoupledLSTMCell": [("forget_bias", "1")],
    "GRUCell": [("use_bias", None), ("dtype", "int8"), ("param_dtype", jnp.int32)],
    "IndRNNCell": [("activation", "gelu")],
    "JANETCell": [("beta", None), ("forget_bias", "1")],
    "LEMCell": [("dt", 0)],
    "LRUCell": [("state_features", 0), ("r_min", 1.5), ("max_phase", "pi")],
    "LSTMCell": [("proj_size", -1), ("proj_size", 9), ("forget_bias", "1")],
    "LayerNormGRUCell": [("epsilon", 0)],
    "LayerNormLSTMCell": [("epsilon", -1.0)],
    "LeakyRNNCell": [
        ("dt", 200.0),
        ("time_constant", 0),
        ("rate", "gelu"),
        ("noise", -1.0),
        ("excitatory", 1.5),
        ("integration", "heun"),
    ],
    "LiGRUCell": [("epsilon", "small")],
    "LinearCell": [("torch_init", True)],
    "MGUCell": [("forget_bias", "0")],
    "MinGRUCell": [("torch_init", True)],
    "MinLSTMCell": [("use_bias", 3), ("forget_bias", "1")],
    "MinimalRNNCell": [("torch_init", True)],
    "MogrifierLSTMCell": [("rounds", -1), ("rank", 0)],
    "MultiplicativeLSTMCell": [("forget_bias", None)],
    "PeepholeLSTMCell": [("forget_bias", "1")],
    "QRNNCell": [("window", 3), ("pooling", "max")],
    "RGLRUCell": [("r_min", 0.9999), ("r_max", "1")],
    "RHNCell": [("depth", 0), ("gate_bias", None)],
    "RNNCell": [("activation", "gelu")],
    "ResetBeforeGRUCell": [("torch_init", True)],
    "S5Cell": [("state_features", 0), ("blocks", 3), ("dt_min", 1.0), ("dt_max", 0)],
    "SCRNCell": [("alpha", 1.5), ("context_features", 0), ("context_features", 4)],
    "SRUCell": [("skip_scale", None)],
    "UGRNNCell": [("forget_bias", "1")],
}


def cell_rows(name):
    kind = getattr(cells, name)
    return [
        (made(kind, 0), "features", "got 0"),
        (made(kind, "4"), "features", "'4'"),
        *(
            (made(kind, 4, **{option: value}), option, str(value).strip("(,)"))
            for option, value in OPTIONS[name]
        ),
    ]


def functional_rows(function, gates):
    params = {"w_x": jnp.zeros((3, gates * 4)), "w_h": jnp.zeros((4, gates * 4))}

    def run(state=None, x=X, **options):
        return functional.__dict__[function](params, state, x, **options)

    def run_with(weights):
        return functional.__dict__[function](weights, None, X)

    return [
        (lambda: run_with(None), "weights", "None"),
        (lambda: run_with({"w_x": X}), "weights", "['w_x']"),
        (lambda: run_with(params | {"w_h": X}), "w_h", "(2, 5, 3)"),
        (lambda: run_with(params | {"w_x": X}), "w_x", "(2, 5, 3)"),
        (lambda: run_with(params | {"b": X}), "b has", "(2, 5, 3)"),
        (lambda: run(x=X[0, 0]), "x must", "(3,)"),
        (lambda: run(x=X > 0), "x must", "bool"),
        (lambda: run(state=X), "state", "ArrayImpl" if gates == 4 else "(2, 5, 3)"),
        (lambda: run(first_state=(X, X, X)), "first_state"),
        (lambda: run(valid=X), "valid", "float32", "(2, 5, 3)"),
        (lambda: run(first=VALID), "first", "starts"),
        (lambda: run(backend="cudnn"), "backend", "'cudnn'"),
    ]


def load_rows(load):
    return [
        (lambda: load({}, LSTM), "weights", "LSTMCell", "only []"),
        (lambda: load(3, LSTM), "weights", "got 3"),
        (lambda: load([3], LSTM), "weights", "()"),
        (lambda: load({}, "lstm"), "layer", "'lstm'"),
        (lambda: load([{"w": X}], LSTM), "weights[0]", "unexpected w (2, 5, 3)"),
        (lambda: load([{}, {}], LSTM), "weights", "1 cells", "got 2"),
    ]


def dump_rows(dump):
    return [
        (lambda: dump({}, LSTM), "variables", "'params'"),
        (lambda: dump(None, LSTM), "variables", "None"),
        (lambda: dump({"params": {"w": X}}, LSTM), "variables", "w (2, 5, 3)"),
        (lambda: dump({}, 3), "layer", "got 3"),
    ]


def export(model=CLASSIFIER, variables=None, **options):
    if variables is None:
        variables = model.init(KEY, TOKENS)
    options = {"platforms": ["cpu"]} | options
    path = tempfile.mkdtemp()
    serving.export(model, variables, path, **options)
    return path


@functools.cache
def served(model):
    return serving.load(export(model))


def reads(tokens, lengths=(1,)):
    return served(CLASSIFIER).classify(tokens, lengths)


def writer():
    return served(LANGUAGE)


def state(rows=1):
    return writer().initial_state(rows)


REFUSED = {
    "Layer": [
        (lambda: jaxrnn.Layer(GRU, features=4), "cell_type", "GRU"),
        (lambda: jaxrnn.Layer("mgu", features=4), "cell_type", "'mgu'"),
        (
            lambda: jaxrnn.Layer(cells.MGUCell, features=4, cell_options={"depth": 2}),
            "MGUCell",
            "'depth'",
        ),
        *layer_kinds(
            lambda features, **options: jaxrnn.Layer(
                cells.MGUCell, features=features, **options
            )
        ),
    ],
    **prefixed("Layer", layer_rows(jaxrnn.Layer(cells.MGUCell, features=4), "f")),
    **{f"cells.{name}": cell_rows(name) for name in OPTIONS},
    "cells.runs_in_parallel": [
        (lambda: cells.runs_in_parallel(cells.MinGRUCell), "cell", "MinGRUCell"),
        (lambda: cells.runs_in_parallel(GRU), "cell", "GRU"),
    ],
    "functional.lstm": functional_rows("lstm", 4),
    "functional.gru": functional_rows("gru", 3),
    "functional.rnn": [
        *functional_rows("rnn", 1),
        (
            lambda: functional.rnn({}, None, X, activation="gelu"),
            "activation",
            "'gelu'",
        ),
    ],
    "functional.resolve_backend": [
        (lambda: functional.resolve_backend("cudnn"), "backend", "'cudnn'"),
        (
            lambda: functional.resolve_backend("native", jnp.bfloat16),
            "backend='native'",
        ),
    ],
    "linear_recurrence.linear_recurrence": [
        (lambda: linear_recurrence(X, X[0]), "a and b", "(2, 5, 3)", "(5, 3)"),
        (lambda: linear_recurrence(X > 0, X), "a must", "bool"),
        (lambda: linear_recurrence(X, HALF), "precision", "'b': 'bfloat16'"),
        (lambda: linear_recurrence(X, X, X), "initial", "(2, 5, 3)", "(5, 3)"),
        (lambda: linear_recurrence(X, X, first_state=X), "first_state", "(2, 5, 3)"),
        (lambda: linear_recurrence(X, X, valid=X), "valid", "float32"),
        (lambda: linear_recurrence(X, X, first=VALID), "first", "starts"),
        (lambda: linear_recurrence(X, X, starts=VALID.T), "starts", "(5, 2)"),
    ],
    "regularizers.embedding_dropout": [
        (
            lambda: regularizers.embedding_dropout({"embedding": X}, 1.0, KEY),
            "rate",
            "1.0",
        ),
        (
            lambda: regularizers.embedding_dropout({"embedding": X}, "half", KEY),
            "rate",
            "'half'",
        ),
        (
            lambda: regularizers.embedding_dropout({"w": X}, 0.5, KEY),
            "embedding",
            "['w']",
        ),
    ],
    "regularizers.activation_regularization": [
        (lambda: regularizers.activation_regularization(X > 0), "outputs", "bool"),
        (lambda: regularizers.activation_regularization(X[0, 0]), "outputs", "(3,)"),
        (
            lambda: regularizers.activation_regularization(X, X[..., 0]),
            "valid",
            "float",
        ),
        (lambda: regularizers.activation_regularization(X, VALID[0]), "valid", "(5,)"),
    ],
    "regularizers.temporal_activation_regularization": [
        (
            lambda: regularizers.temporal_activation_regularization(X > 0),
            "outputs",
            "bool",
        ),
        (
            lambda: regularizers.temporal_activation_regularization(X, VALID),
            "segment_ids",
            "bool",
        ),
        (
            lambda: regularizers.temporal_activation_regularization(X, [1, 1, 1]),
            "segment_ids",
            "(3,)",
        ),
    ],
    "serving.export": [
        (lambda: export(GRU, {}), "model", "GRU"),
        (lambda: export(variables=[X]), "variables", "[Array"),
        (lambda: export(labels=["yes"]), "labels", "2", "got 1"),
        (lambda: export(LANGUAGE, labels=["yes"]), "labels", "language model"),
        (lambda: export(vocabulary=["a"]), "vocabulary", "9", "got 1"),
        (lambda: export(platforms=["tpux"]), "platforms", "['tpux']"),
        (lambda: export(platforms=[]), "platforms", "[]"),
    ],
    "serving.load": [
        (lambda: serving.load("/nowhere"), "/nowhere", "card.json"),
        (lambda: serving.load(3), "PathLike", "int"),
    ],
    "serving.Model": [(lambda: serving.Model("path", None, {}, {}), "card", "'path'")],
    "serving.Model.classify": [
        (lambda: reads([[1.5]]), "tokens", "float64"),
        (lambda: reads([1]), "tokens", "(1,)"),
        (lambda: reads([[1]], 1), "lengths", "()"),
        (lambda: reads([[1]], [True]), "lengths", "bool"),
        (lambda: writer().classify([[1]], [1]), "language model", "classify"),
    ],
    "serving.Model.initial_state": [
        (lambda: state(-1), "rows", "got -1"),
        (lambda: state((2,)), "rows", "(2,)"),
        (lambda: served(CLASSIFIER).initial_state(1), "classifier", "state"),
    ],
    "serving.Model.prefill": [
        (lambda: writer().prefill([1], [1], state()), "tokens", "(1,)"),
        (lambda: writer().prefill([[1]], [1.0], state()), "lengths", "float64"),
        (lambda: writer().prefill([[1]], [1], ()), "state", "()"),
    ],
    "serving.Model.step": [
        (lambda: writer().step([1.5], state()), "tokens", "float64"),
        (lambda: writer().step([[1]], state()), "tokens", "(1, 1)"),
        (lambda: writer().step([1], None), "state", "None"),
        (lambda: served(CLASSIFIER).step([1], {}), "classifier", "step"),
    ],
    **{
        f"weights.from_{library}": load_rows(getattr(weights, f"from_{library}"))
        for library in ("haiku", "keras", "linen", "nnx")
    },
    **{
        f"weights.to_{library}": dump_rows(getattr(weights, f"to_{library}"))
        for library in ("haiku", "keras", "linen", "nnx")
    },
    **{  # They are the same functions there.
        f"weights.{name}": refused_data.REFUSED[f"torch_weights.{name}"]
        for name in ("from_torch", "to_torch", "load_safetensors", "save_safetensors")
    },
}
