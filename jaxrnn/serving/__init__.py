"""A trained model as files that run without this library.

`export` writes a directory; `load` there or here reads it again with JAX alone:

    card.json             what the model is, of which JAX, and the sum of each file
    classify.stablehlo    a classifier's function, of any batch and length, or
    step.stablehlo        a language model's, for one token of each row, and
    prefill.stablehlo     for prompts; each for CPU, CUDA and TPU
    weights.safetensors   the arguments of these functions
    vocabulary.json       the token of each id
    load.py               reads all this; imports only jax and numpy

The functions are StableHLO, made and read by `jax.export`, which needs the package
flatbuffers for it (`pip install ".[serving]"` in a clone). JAX promises that releases
of the six months after the one that wrote them can read them, and those of the three
weeks before it: the card says which it was. Weights, vocabulary and card are not bound
to JAX.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export as jax_export
from safetensors.numpy import save

from jaxrnn._validation import linen_hint
from jaxrnn.models import LanguageModel, SequenceClassifier
from jaxrnn.serving import loader
from jaxrnn.serving.loader import Model, load

__all__ = ["Model", "export", "load"]

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    model: SequenceClassifier | LanguageModel | nn.Module,
    variables: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    vocabulary: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    multi_label: bool = False,
    tokenizer: Mapping[str, Any] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes a model into a new directory, from which `load` runs it.

    Args:
        model: a `SequenceClassifier`, a `LanguageModel`, or a Flax module that is
            called as the first one is, with its attributes `num_classes` and
            `vocab_size`.
        variables: with its weights.
        path: of the directory, which must not be there yet, or be empty.
        vocabulary: the token of each id.
        labels: the name of each class; for a classifier with one logit those of the
            negative and the positive class.
        multi_label: whether a sequence may have several of the labels, each with the
            sigmoid of its logit for a probability; kept in the card.
        tokenizer: how texts are tokenized, as JSON; kept in the card.
        platforms: what to compile for.

    Raises:
        TypeError: if `model` is another one, or `variables` is no mapping.
        ValueError: if the vocabulary or the labels are not as many as the model has; if
            `multi_label` is set for a model with one logit; if a platform is unknown to
            JAX.
        FileExistsError: if there is something at `path`.
        OSError: if it cannot be written.

    >>> from jaxrnn import GRU
    >>> model = SequenceClassifier(100, 16, GRU(8))
    >>> tokens, lengths = jnp.array([[3, 1, 4], [1, 5, 0]]), jnp.array([3, 2])
    >>> variables = model.init(jax.random.key(0), tokens, lengths=lengths)
    >>> path = Path(tempfile.mkdtemp(), "reviews")
    >>> export(model, variables, path, labels=["negative", "positive"])
    >>> load(path).classify(tokens, lengths).shape
    (2,)
    """
    path = Path(path)
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables must be a dict of arrays, got {variables!r:.200}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already: name a new directory")
    if not platforms or not {*platforms} <= {*PLATFORMS, "rocm"}:
        raise ValueError(
            f"platforms must be some of {[*PLATFORMS, 'rocm']}, got {[*platforms]}"
        )
    if isinstance(model, LanguageModel):
        kind, (functions, initial) = "language model", _language_model(model, variables)
        if labels is not None or multi_label:
            raise ValueError("labels are of a classifier: a language model has none")
    elif isinstance(model, nn.Module) and hasattr(model, "num_classes"):
        kind, functions, initial = "classifier", _classifier(model), {}
        classes = 2 if model.num_classes is None else model.num_classes
        if labels is not None and len(labels) != classes:
            raise ValueError(f"labels must be {classes}, got {len(labels)}")
        if multi_label and model.num_classes is None:
            raise ValueError(
                "multi_label needs a logit of each label: give the classifier "
                "num_classes"
            )
    else:
        raise TypeError(
            "model must be a SequenceClassifier or a LanguageModel of Flax Linen, got "
            f"{type(model).__name__}{linen_hint(model)}"
        )
    if vocabulary is not None and len(vocabulary) != model.vocab_size:
        raise ValueError(
            f"vocabulary must have {model.vocab_size} tokens, as the model has, got "
            f"{len(vocabulary)}"
        )
    weights = _by_name(jax.device_get(variables))
    arrays = weights | {f"initial_state/{k}": v for k, v in initial.items()}
    specs = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in arrays.items()}
    structure = jax.tree.structure(variables)
    names = [*weights]
    files: dict[str, bytes] = {"weights.safetensors": save(arrays)}
    card: dict[str, Any] = {
        "format": loader.FORMAT,
        "kind": kind,
        "jax": jax.__version__,
        "platforms": [*platforms],
        "vocab_size": model.vocab_size,
        "functions": {},
        "labels": None if labels is None else [*labels],
        "multi_label": multi_label,
        "tokenizer": None if tokenizer is None else dict(tokenizer),
    }
    for name, (function, arguments) in functions.items():

        def flat(params, *arguments, function=function):
            leaves = [params[name] for name in names]
            return function(jax.tree.unflatten(structure, leaves), *arguments)

        make = jax_export.export(jax.jit(flat), platforms=tuple(platforms))
        exported = make(specs, *arguments)
        files[f"{name}.stablehlo"] = bytes(exported.serialize())
        card["calling_convention_version"] = exported.calling_convention_version
        card["functions"][name] = {
            "file": f"{name}.stablehlo",
            "inputs": [str(aval) for aval in exported.in_avals[len(specs) :]],
            "outputs": [str(aval) for aval in exported.out_avals],
        }
    if vocabulary is not None:
        files["vocabulary.json"] = _json([*vocabulary])
    card["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    files["load.py"] = Path(loader.__file__).read_bytes()
    files["card.json"] = _json(card)
    _write(path, files)


def _classifier(model: nn.Module) -> dict[str, Any]:
    b, t = jax_export.symbolic_shape("b, t")

    def classify(variables, tokens, lengths):
        return model.apply(variables, tokens, lengths=lengths)

    ids = (
        jax.ShapeDtypeStruct((b, t), jnp.int32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
    )
    return {"classify": (classify, ids)}


def _language_model(
    model: LanguageModel, variables: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its functions, of a state that is a flat dict, and that of one row."""
    b, t = jax_export.symbolic_shape("b, t")
    state = model.apply(variables, (1,), method="initial_state")
    structure = jax.tree.structure(state)
    initial = _by_name(jax.device_get(state))
    specs = {
        name: jax.ShapeDtypeStruct((b, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in initial.items()
    }

    def nested(leaves):
        return jax.tree.unflatten(structure, [leaves[name] for name in initial])

    def step(variables, tokens, leaves):
        logits, state = model.apply(variables, tokens, nested(leaves), method="step")
        return logits, _by_name(state)

    def prefill(variables, tokens, lengths, leaves):
        logits, state = model.apply(
            variables, tokens, lengths=lengths, state=nested(leaves)
        )
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        return jnp.take_along_axis(logits, last, axis=1)[:, 0], _by_name(state)

    row, rows = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((b,), (b, t)))
    functions = {"step": (step, (row, specs)), "prefill": (prefill, (rows, row, specs))}
    return functions, initial


def _by_name(tree: Any) -> dict[str, Any]:
    """A flat dict, which `jax.export` can write: of other containers it knows none.

    It has the order of the tree's leaves. What JAX maps over it comes back sorted.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    """All of them or none: what stops in between leaves no directory of this name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)  # A temporary one is its owner's alone.
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
