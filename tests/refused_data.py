"""What the functions on data refuse: by function, calls and the words of the error."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import batching, metrics, placement, segments, text, torch_weights
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.metrics import Mean

LAYER = jaxrnn.RNN(2)
IDS = jnp.array([1, 1, 2, 0])
X = jnp.zeros((4, 3))
VOCAB = text.Vocab(("a", "b"))
STATE = {"w": jnp.ones(2)}


def checkpoints():
    """With one of step 1."""
    made = Checkpoints(tempfile.mkdtemp())
    made.save(1, STATE, info={}, metric=0.5)
    return made


def save(step=2, state=STATE, info=None, metric=0.5):
    return checkpoints().save(step, state, info=info or {}, metric=metric)


REFUSED = {
    "text.word_tokens": [(lambda: text.word_tokens(b"a"), "text", "bytes")],
    "text.word_spans": [(lambda: text.word_spans(b"a"), "text", "bytes")],
    "text.nfc": [(lambda: text.nfc(b"a"), "text", "bytes")],
    "text.char_tokens": [(lambda: text.char_tokens(3), "text", "int")],
    "text.whitespace_tokens": [(lambda: text.whitespace_tokens(3), "text", "int")],
    "text.Vocab": [
        (lambda: text.Vocab(()), "token", "none"),
        (lambda: text.Vocab(("a", 3)), "tokens", "got 3"),
        (lambda: text.Vocab(("a", "a")), "token", "'a'"),
        (lambda: text.Vocab("ab"), "tokens", "'ab'"),
        (lambda: text.Vocab(7), "tokens", "got 7"),
    ],
    "text.Vocab.build": [
        (lambda: text.Vocab.build([["a"]], min_count=0), "min_count", "got 0"),
        (lambda: text.Vocab.build([["a"]], min_count="2"), "min_count", "'2'"),
        (lambda: text.Vocab.build([["a"]], max_size=2), "max_size 2"),
        (lambda: text.Vocab.build([["a"]], max_size=2.5), "max_size", "2.5"),
        (lambda: text.Vocab.build(["a b"]), "tokens", "'a b'"),
        (lambda: text.Vocab.build([[1]]), "tokens", "got 1"),
        (lambda: text.Vocab.build([["a"]], specials=3), "specials", "got 3"),
        (lambda: text.Vocab.build([]), "corpus", "empty"),
    ],
    "text.Vocab.load": [(lambda: text.Vocab.load(__file__), __file__, "line 1")],
    "text.Vocab.save": [(lambda: VOCAB.save(3.5), "os.PathLike", "float")],
    "text.Vocab.encode": [
        (lambda: VOCAB.encode("ab"), "tokens", "'ab'"),
        (lambda: VOCAB.encode(3), "tokens", "got 3"),
        (lambda: VOCAB.encode(["z"]), "token", "'z'"),
    ],
    "text.Vocab.decode": [
        (lambda: VOCAB.decode([2]), "ids", "got 2"),
        (lambda: VOCAB.decode([-1]), "ids", "got -1"),
        (lambda: VOCAB.decode([0.5]), "ids", "float64"),
        (lambda: VOCAB.decode([[0]]), "ids", "(1, 1)"),
    ],
    "batching.epoch_rng": [
        (lambda: batching.epoch_rng(-1, 0), "seed", "got -1"),
        (lambda: batching.epoch_rng(0, 0.5), "epoch", "0.5"),
    ],
    "batching.truncate_middle": [
        (lambda: batching.truncate_middle([0.5], 2), "ids", "float64"),
        (lambda: batching.truncate_middle([1], 0), "max_length", "got 0"),
    ],
    "batching.pad": [
        (lambda: batching.pad([]), "no sequences"),
        (lambda: batching.pad([["a", "b"]]), "numbers", "U1"),
        (lambda: batching.pad([[1, [2, 3]]]), "one shape"),
        (lambda: batching.pad([3]), "axis of time", "3"),
        (lambda: batching.pad([np.ones((2, 3)), np.ones((2, 4))]), "(3,)", "(4,)"),
        (lambda: batching.pad([np.ones((2, 3)), [1.0]]), "(3,)", "()"),
        (lambda: batching.pad([[2**32 + 5]]), "sequence", "4294967301"),
        (lambda: batching.pad([[1, 2]], 1), "length", "1"),
        (lambda: batching.pad([[1, 2]], 1), "length = 1"),
        (lambda: batching.pad([[1, 2]], "3"), "length", "'3'"),
    ],
    "batching.pad_rows": [
        (lambda: batching.pad_rows({"x": np.ones(3)}, 2), "at most 2", "'x': 3"),
        (lambda: batching.pad_rows({"x": np.ones(3)}, 3.5), "rows", "3.5"),
    ],
    "batching.bucket_lengths": [
        (lambda: batching.bucket_lengths([], 2), "no lengths"),
        (lambda: batching.bucket_lengths([-1], 2), "lengths", "got -1"),
        (lambda: batching.bucket_lengths([1], 0), "num_buckets", "got 0"),
        (lambda: batching.bucket_lengths([1], None), "num_buckets", "None"),
    ],
    "batching.bucket_batches": [
        (lambda: batching.bucket_batches([0.5], [1], 1), "lengths", "float64"),
        (lambda: batching.bucket_batches([2], [1], 1), "length 2"),
        (lambda: batching.bucket_batches([1], [2, 2], 1), "boundaries", "(2, 2)"),
        (lambda: batching.bucket_batches([1], [1], 0), "batch_size", "got 0"),
    ],
    "batching.plan_packing": [
        (lambda: batching.plan_packing([0], 3), "lengths", "got 0"),
        (lambda: batching.plan_packing([4], 3), "row_length = 3"),
        (lambda: batching.plan_packing([1], 2.0), "row_length", "2.0"),
    ],
    "batching.pack_sequences": [
        (lambda: batching.pack_sequences([[1]], [], 3), "no sequences"),
        (lambda: batching.pack_sequences([[]], [[0]], 3), "lengths", "got 0"),
        (lambda: batching.pack_sequences([["a"]], [[0]], 3), "numbers", "U1"),
        (lambda: batching.pack_sequences([[1, 2]], [[0]], 1), "length = 1"),
    ],
    "batching.tbptt_batches": [
        (lambda: batching.tbptt_batches([1, 2], 2, 1), "batch_size = 2"),
        (lambda: batching.tbptt_batches([1, 2], 1, 0), "time", "got 0"),
        (lambda: batching.tbptt_batches([[1, 2]], 1, 1), "ids", "(1, 2)"),
    ],
    "segments.from_lengths": [
        (lambda: segments.from_lengths(np.array([4]), 3), "length 4"),
        (lambda: segments.from_lengths(np.array([-1]), 3), "length", "negative: -1"),
        (lambda: segments.from_lengths(np.array([1.0]), 3), "lengths", "float64"),
        (lambda: segments.from_lengths(np.array([1]), -3), "time", "got -3"),
        (lambda: segments.from_lengths(np.array([1]), "3"), "time", "'3'"),
    ],
    "save": [
        (lambda: jaxrnn.save("model", [1]), "variables", "[1]"),
        (lambda: jaxrnn.save("model", {"a": 1}), "variables", "1 as a"),
        (lambda: jaxrnn.save("model", {}, {1: 2}), "config", "{1: 2}"),
    ],
    "load": [(lambda: jaxrnn.load(__file__), "refused_data.py")],
    "segments.from_resets": [
        (lambda: segments.from_resets(IDS), "resets", "int32"),
    ],
    "segments.from_dones": [
        (lambda: segments.from_dones(IDS), "dones", "int32"),
    ],
    "segments.from_mask": [(lambda: segments.from_mask(IDS), "mask", "int32")],
    "segments.lengths": [
        (lambda: segments.lengths(X, 2), "segment_ids", "float32"),
        (lambda: segments.lengths(IDS, 0), "num_segments", "got 0"),
        (lambda: segments.lengths(IDS, None), "num_segments", "None"),
    ],
    "segments.starts": [(lambda: segments.starts(X), "segment_ids", "float32")],
    "segments.first": [(lambda: segments.first(X > 0), "segment_ids", "bool")],
    "segments.pool": [
        (lambda: segments.pool(X, IDS, "median"), "pooling", "'median'"),
        (lambda: segments.pool(X, IDS), "num_segments = 1"),
        (lambda: segments.pool(X, IDS[:3], num_segments=2), "segment_ids", "(3,)"),
        (lambda: segments.pool(X, X[:, 0]), "segment_ids", "float32"),
        (lambda: segments.pool(X, IDS, num_segments=1.5), "num_segments", "got 1.5"),
    ],
    "segments.resolve": [
        (lambda: segments.resolve((2, 4), IDS, IDS), "lengths", "segment_ids"),
        (lambda: segments.resolve((2, 4), IDS, None), "lengths", "(4,)"),
        (lambda: segments.resolve((2, 4), None, IDS), "segment_ids", "(4,)"),
        (lambda: segments.resolve((4,), None, IDS[::-1]), "segment ids", "but 1"),
        (lambda: segments.resolve((4,), None, -IDS), "segment id", "negative: -2"),
    ],
    "metrics.Mean.of": [
        (lambda: Mean.of(jnp.ones(3), jnp.ones(2)), "weights", "(2,)"),
        (lambda: Mean.of("3"), "values", "'3'"),
        (lambda: Mean.of(jnp.ones(()), "3"), "weights", "'3'"),
    ],
    "metrics.merge": [
        (lambda: metrics.merge([{"loss": 0.5}]), "loss", "0.5"),
    ],
    "metrics.Mean.merge": [(lambda: Mean.of(X).merge(0.5), "other", "0.5")],
    "metrics.cross_entropy": [
        (lambda: metrics.cross_entropy(X, IDS[:3]), "ids", "(3,)"),
        (lambda: metrics.cross_entropy(X, X[:, 0]), "ids", "float32"),
        (lambda: metrics.cross_entropy(None, IDS), "logits", "None"),
    ],
    "metrics.binary_cross_entropy": [
        (lambda: metrics.binary_cross_entropy(X, IDS), "labels", "(4,)"),
        (lambda: metrics.binary_cross_entropy("x", IDS), "logits", "'x'"),
    ],
    "metrics.correct": [
        (lambda: metrics.correct(X, IDS[:2]), "labels", "(2,)"),
        (lambda: metrics.correct(X, "positive"), "labels", "'positive'"),
    ],
    "metrics.perplexity": [(lambda: metrics.perplexity("1.5"), "nats", "'1.5'")],
    "metrics.nats_to_bits": [(lambda: metrics.nats_to_bits(None), "nats", "None")],
    "torch_weights.from_torch": [
        (lambda: torch_weights.from_torch({}, LAYER), "state_dict", "only []"),
        (lambda: torch_weights.from_torch([1], LAYER), "state_dict", "[1]"),
        (lambda: torch_weights.from_torch({}, "lstm"), "layer", "'lstm'"),
        (
            lambda: torch_weights.from_torch({"weight_ih_l0": X}, LAYER),
            "weight_ih_l0",
            "(4, 3)",
        ),
    ],
    "torch_weights.to_torch": [
        (lambda: torch_weights.to_torch({}, LAYER), "variables", "'params'"),
        (lambda: torch_weights.to_torch(None, LAYER), "variables", "None"),
        (lambda: torch_weights.to_torch({}, 3), "layer", "got 3"),
    ],
    "torch_weights.load_safetensors": [
        (lambda: torch_weights.load_safetensors(__file__), __file__, "header")
    ],
    "torch_weights.save_safetensors": [
        (lambda: torch_weights.save_safetensors({"w": "heavy"}, "/"), "w must", "<U5"),
        (lambda: torch_weights.save_safetensors([X], "/"), "arrays", "Array"),
    ],
    "checkpoints.Checkpoints": [(lambda: Checkpoints("/", "least"), "mode", "'least'")],
    "checkpoints.Checkpoints.save": [
        (lambda: save(step=-1), "step", "got -1"),
        (lambda: save(step=1.5), "step", "got 1.5"),
        (lambda: save(step=1), "checkpoint of step 1"),
        (lambda: save(state={"w": 0.5}), "w must", "got 0.5"),
        (lambda: save(state={"w": np.ones(2)}), "w is float64", "convert"),
        (lambda: save(state=None, info={"key": jax.random.key(0)}), "info", "key"),
        (lambda: save(metric="0.5"), "metric", "'0.5'"),
        (lambda: save(metric=float("nan")), "metric", "NaN"),
    ],
    "checkpoints.Checkpoints.restore": [
        (lambda: checkpoints().restore(STATE, "newest"), "checkpoint", "'newest'"),
        (lambda: checkpoints().restore(STATE, 3), "checkpoint 3"),
        (lambda: checkpoints().restore({"w": 0.5}), "w must", "got 0.5"),
        (lambda: checkpoints().restore({"w": X}), "w is", "float32[4, 3]"),
    ],
    "placement.data_mesh": [
        (lambda: placement.data_mesh(0), "num_devices", "got 0"),
        (lambda: placement.data_mesh(99), "99 devices"),
        (lambda: placement.data_mesh(1.5), "num_devices", "got 1.5"),
    ],
    "placement.shard_batch": [
        (
            lambda: placement.shard_batch({"x": 0.5}, placement.data_mesh(1)),
            "['x']",
            "no axis",
        ),
        (
            lambda: placement.shard_batch({"x": X[:1]}, placement.data_mesh(2)),
            "['x']",
            "1 rows",
        ),
    ],
    "placement.local_batch_slice": [
        (
            lambda: placement.local_batch_slice(3, placement.data_mesh(2)),
            "2 devices",
            "3 rows",
        ),
    ],
    "placement.shard_leading_axis": [
        (
            lambda: placement.shard_leading_axis(
                (X[:3],), placement.data_mesh(2), "carry"
            ),
            "carry[0]",
            "3 rows",
        ),
    ],
    "placement.replicate": [
        (
            lambda: placement.replicate({"w": "words"}, placement.data_mesh(1)),
            "words",
            "str",
        ),
    ],
}
