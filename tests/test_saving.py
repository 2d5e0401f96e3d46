"""Models in one file: there and back, and what is refused."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxrnn
from jaxrnn import torch_weights
from jaxrnn.models import SequenceClassifier

X = np.ones((2, 5, 3), np.float32)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_comes_back_without_a_template(tmp_path, dtype):
    config = {"vocab_size": 9, "embed_features": 4}
    encoder = {"features": 4, "num_layers": 2, "param_dtype": dtype, "dtype": "float32"}

    def make(config, encoder):
        return SequenceClassifier(encoder=jaxrnn.LSTM(**encoder), **config)

    tokens = np.array([[1, 2, 3]])
    variables = make(config, encoder).init(jax.random.key(0), tokens)
    path = tmp_path / "model.safetensors"
    jaxrnn.save(path, variables, [config, encoder])
    found, settings = jaxrnn.load(path)
    assert_equal(found, variables)
    assert settings == [config, encoder]
    again = make(*settings).apply(found, tokens)
    np.testing.assert_array_equal(again, make(config, encoder).apply(variables, tokens))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    # And other tools read it.
    if dtype == "float32":
        assert "params/embed/embedding" in torch_weights.load_safetensors(path)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3).T,
        np.float64(3.0),
        np.array(True),
        np.zeros((0, 3), np.uint8),
        jnp.ones((), jnp.int32),
    ],
    ids=["transposed", "float64 scalar", "bool", "empty", "jax scalar"],
)
def test_arrays_of_every_kind(tmp_path, array):
    path = tmp_path / "array.safetensors"
    jaxrnn.save(path, {"stats": {"a": array}})
    found, config = jaxrnn.load(path)
    assert_equal(found, {"stats": {"a": np.asarray(array)}})
    assert config is None


def test_parameters_with_metadata_are_saved_without_it(tmp_path):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    variables = jaxrnn.GRU(4, kernel_init=init).init(jax.random.key(0), X)
    jaxrnn.save(tmp_path / "boxed", variables)
    assert_equal(jaxrnn.load(tmp_path / "boxed")[0], nn.meta.unbox(variables))


@pytest.mark.parametrize(
    ("variables", "config", "error", "message"),
    [
        (np.ones(2), None, TypeError, "nested dicts of arrays, got .* as the whole"),
        ({"a": [1, 2]}, None, TypeError, r"got \[1, 2\] as a"),
        ({"a": {"b": "text"}}, None, TypeError, "got 'text' as a/b"),
        ({"a": np.array(["x"])}, None, TypeError, "a must have a dtype that .*<U1"),
        ({"a": jax.random.key(0)}, None, TypeError, "as a"),
        ({1: np.ones(2)}, None, TypeError, "strings as names, got 1"),
        ({"a/b": np.ones(2)}, None, ValueError, "slash .*got 'a/b'"),
        ({"": np.ones(2)}, None, ValueError, "must not be empty"),
        ({"\ud83d": np.ones(2)}, None, ValueError, "half a surrogate pair"),
        ({"__metadata__": np.ones(2)}, None, ValueError, "entry of the file format"),
        ({"a": jnp.ones(2, jnp.float8_e4m3fn)}, None, TypeError, "got float8_e4m3fn"),
        ({"a": np.ones(2, complex)}, None, TypeError, "got complex128"),
        ({}, {"x": np.ones(2)}, TypeError, "config must be JSON: .*ndarray"),
        ({}, {"x": float("nan")}, TypeError, "config must be JSON"),
        ({}, {1: 2}, TypeError, r"strings as keys, got \{1: 2\}"),
    ],
)
def test_what_cannot_be_saved(tmp_path, variables, config, error, message):
    with pytest.raises(error, match=message):
        jaxrnn.save(tmp_path / "model", variables, config)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    jaxrnn.save(path, {"a": np.ones(2)}, "first")

    def fail(partial, content):
        with partial.open("wb") as file:
            file.write(content[:9])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        jaxrnn.save(path, {"a": np.zeros(2)}, "second")
    assert jaxrnn.load(path)[1] == "first"
    assert [*tmp_path.iterdir()] == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    found = os.umask(0)
    os.umask(found)
    return found


def test_files_that_are_none(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError):
        jaxrnn.load(path)
    torch_weights.save_safetensors({"weight": np.ones(2)}, path)
    with pytest.raises(ValueError, match=r"model is no model .* not written by jaxrnn"):
        jaxrnn.load(path)
    jaxrnn.save(path, {"a": np.ones(20)}, {"b": 1})
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:30], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model is no model that can be loaded"):
            jaxrnn.load(path)
    # A path that is an array and a folder at once.
    header = {
        "__metadata__": {"format": "jaxrnn 1", "config": "null"},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "a/b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
    }
    spelled = json.dumps(header).encode()
    path.write_bytes(len(spelled).to_bytes(8, "little") + spelled + b"\x01\x02")
    with pytest.raises(ValueError, match="model is no model that can be loaded"):
        jaxrnn.load(path)
