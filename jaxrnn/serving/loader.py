"""A model that `jaxrnn.serving.export` wrote, run with JAX and numpy alone.

This file is a part of every exported model, as `load.py`: copy it to where the model is
served. It imports nothing of jaxrnn, and no Flax.

    model = load("reviews")
    logits = model.classify(tokens, lengths)

    model = load("shakespeare")
    logits, state = model.prefill(tokens, lengths, model.initial_state(rows))
    logits, state = model.step(next_tokens, state)
"""

import hashlib
import json
import math
import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FORMAT = 1


class Model:
    """An exported model.

    Attributes:
        card: what `card.json` says of it: `kind`, `functions`, `labels`, and so on.
        vocabulary: the token of each id, or None.
        params: the weights by name, on the default device.

    >>> import tempfile
    >>> from jaxrnn import GRU, models, serving
    >>> model = models.SequenceClassifier(9, 4, GRU(2))
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
    >>> path = f"{tempfile.mkdtemp()}/reviews"
    >>> serving.export(model, variables, path, platforms=["cpu"])
    >>> reviews = load(path)
    >>> reviews.card["kind"], reviews.card["functions"]["classify"]["outputs"]
    ('classifier', ['float32[b]'])
    """

    def __init__(self, card, vocabulary, params, functions):
        if not isinstance(card, dict):
            raise TypeError(f"card must be a dict, got {card!r}: use load(path)")
        self.card, self.vocabulary, self.params = card, vocabulary, params
        self._functions = functions

    def classify(self, tokens, lengths):
        """The logits of a classifier, `[b]` or `[b, classes]`.

        `tokens` are ids `[b, t]`, of which the first `lengths` `[b]` of each row are no
        padding. Each shape is compiled once.

        >>> import tempfile
        >>> from jaxrnn import GRU, models, serving
        >>> model = models.SequenceClassifier(9, 4, GRU(2))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        >>> path = f"{tempfile.mkdtemp()}/reviews"
        >>> serving.export(model, variables, path, platforms=["cpu"])
        >>> load(path).classify([[3, 1, 4], [1, 5, 0]], [3, 2]).shape
        (2,)
        """
        tokens, lengths = _ids("tokens", tokens, 2), _ids("lengths", lengths, 1)
        return self._call("classify", tokens, lengths)

    def step(self, tokens, state):
        """The logits `[b, v]` of a language model after one more token of each row.

        `tokens` is `[b]`. The state after them is returned, too.

        >>> import tempfile
        >>> from jaxrnn import GRU, models, serving
        >>> model = models.LanguageModel(9, 4, GRU(2))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        >>> path = f"{tempfile.mkdtemp()}/writer"
        >>> serving.export(model, variables, path, platforms=["cpu"])
        >>> writer = load(path)
        >>> logits, state = writer.step([3, 1], writer.initial_state(2))
        >>> logits.shape
        (2, 9)
        """
        return self._call("step", _ids("tokens", tokens, 1), state)

    def prefill(self, tokens, lengths, state):
        """The logits `[b, v]` of a language model after a prompt, and the state there.

        `tokens` is `[b, t]`, of which the first `lengths` `[b]` of each row are read,
        at least one.

        >>> import tempfile
        >>> from jaxrnn import GRU, models, serving
        >>> model = models.LanguageModel(9, 4, GRU(2))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        >>> path = f"{tempfile.mkdtemp()}/writer"
        >>> serving.export(model, variables, path, platforms=["cpu"])
        >>> writer = load(path)
        >>> state = writer.initial_state(2)
        >>> logits, state = writer.prefill([[3, 1], [4, 0]], [2, 1], state)
        >>> logits.shape
        (2, 9)
        """
        tokens, lengths = _ids("tokens", tokens, 2), _ids("lengths", lengths, 1)
        return self._call("prefill", tokens, lengths, state)

    def initial_state(self, rows):
        """The state of `rows` rows before anything was read.

        >>> import tempfile
        >>> from jaxrnn import GRU, models, serving
        >>> model = models.LanguageModel(9, 4, GRU(2))
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        >>> path = f"{tempfile.mkdtemp()}/writer"
        >>> serving.export(model, variables, path, platforms=["cpu"])
        >>> writer = load(path)
        >>> {name: array.shape for name, array in writer.initial_state(2).items()}
        {'0': (2, 2)}
        """
        try:
            number = operator.index(rows)
        except TypeError:
            raise TypeError(f"rows must be an integer, got {rows!r}") from None
        if number < 0:
            raise ValueError(f"rows must be at least 0, got {rows}")
        if "step" not in self._functions:
            raise ValueError(f"a {self.card['kind']} has no state")
        return {
            name.removeprefix("initial_state/"): jnp.repeat(array, number, axis=0)
            for name, array in self.params.items()
            if name.startswith("initial_state/")
        }

    def _call(self, name, *arguments):
        if name not in self._functions:
            raise ValueError(
                f"a {self.card['kind']} has no {name}, only {[*self._functions]}"
            )
        *_, state = arguments
        if name != "classify" and not isinstance(state, dict):
            raise TypeError(
                "state must be a dict of arrays, as initial_state returns, got "
                f"{state!r:.200}"
            )
        return self._functions[name](self.params, *arguments)


def _ids(name, values, axes):
    """As int32, which a number with a fraction would be cut to."""
    if not isinstance(values, jax.Array):
        values = np.asarray(values)  # a compiled function takes it as it is, and faster
    if values.size and not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if values.ndim != axes:
        numeral = "one axis" if axes == 1 else f"{axes} axes"
        raise ValueError(f"{name} must have {numeral}, got shape {values.shape}")
    return values if values.dtype == np.int32 else values.astype(np.int32)


def load(path):
    """The model in a directory that `jaxrnn.serving.export` wrote.

    Raises:
        ValueError: if the directory holds none, a file is cut or was changed, or this
            JAX cannot read it.
        ModuleNotFoundError: if flatbuffers is not there, which `jax.export` reads with.

    >>> import tempfile
    >>> from jaxrnn import GRU, models, serving
    >>> model = models.SequenceClassifier(9, 4, GRU(2))
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
    >>> path = f"{tempfile.mkdtemp()}/reviews"
    >>> serving.export(model, variables, path, platforms=["cpu"])
    >>> load(path).card["platforms"]
    ['cpu']
    """
    path = Path(path)
    try:
        card = json.loads((path / "card.json").read_text("utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} is no exported model: no card.json can be read there "
            f"({error.strerror})"
        ) from None
    except ValueError as error:
        raise ValueError(f"card.json in {path} is damaged: {error}") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else card
        raise ValueError(
            f"{path} has format {found!r}, this loader reads {FORMAT}: export the "
            "model again, or use the load.py beside it"
        )
    version = card["calling_convention_version"]
    oldest = export.minimum_supported_calling_convention_version
    newest = export.maximum_supported_calling_convention_version
    if not oldest <= version <= newest:
        raise ValueError(
            f"{path} was made by JAX {card['jax']} with calling convention {version}, "
            f"JAX {jax.__version__} reads {oldest} to {newest}: export it again, or "
            f"install jax=={card['jax']}"
        )
    content = {
        name: _checked(path, name, entry) for name, entry in card["files"].items()
    }
    functions = {}
    for name, function in card["functions"].items():
        try:
            exported = export.deserialize(bytearray(content[function["file"]]))
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error.name} must be installed to read {path}: pip install "
                f"{error.name}"
            ) from None
        except Exception as error:  # of several kinds, by what the file holds
            cause = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{function['file']} in {path} was made by JAX {card['jax']} and "
                f"cannot be read by JAX {jax.__version__}: {cause}"
            ) from None
        functions[name] = jax.jit(exported.call)
    vocabulary = content.get("vocabulary.json")
    return Model(
        card,
        None if vocabulary is None else json.loads(vocabulary),
        jax.device_put(read_safetensors(content["weights.safetensors"])),
        functions,
    )


def _checked(path, name, entry):
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} lacks {name}, which its card names ({error.strerror})"
        ) from None
    if len(content) != entry["bytes"]:
        raise ValueError(
            f"{name} in {path} is damaged: it has {len(content)} bytes, written were "
            f"{entry['bytes']}"
        )
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(
            f"{name} in {path} is damaged: its bytes are not those that were written"
        )
    return content


def read_safetensors(content):
    """The arrays of a `.safetensors` file by name.

    The format is a length, a header in JSON, and bytes.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        array = np.frombuffer(content[begin:end], dtype, math.prod(entry["shape"]))
        arrays[name] = array.reshape(entry["shape"])
    return arrays


_DTYPES = {
    "BOOL": np.bool_,
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}
