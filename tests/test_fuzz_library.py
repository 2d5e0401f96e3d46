"""The library's readers, given anything: an error of one line, or what was written."""

import hashlib
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxrnn
from jaxrnn import torch_weights
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import Vocab
from tests.fuzz import (
    any_json,
    assert_one_line,
    damaged,
    files,
    fuzz,
    half,
    read_or_refuse,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


GOOD_VOCAB = b'"<pad>"\n"<unk>"\n"the"\n"\\u00e9"\n"a b"\n"\\n"\n'
tokens = st.text(max_size=4) | st.sampled_from(["\x00", "\x1b[2J", "\u2028", "<pad>"])
token_lines = st.lists(tokens, max_size=6).map(
    lambda many: "".join(json.dumps(token) + "\n" for token in many).encode()
)


@fuzz
@given(content=files(GOOD_VOCAB) | token_lines)
def test_vocabularies(directory, content):
    vocab = read_or_refuse(Vocab.load, directory / "vocab.txt", content)
    if vocab is None:
        return
    # By an independent reader of JSON lines.
    lines = content.decode().removesuffix("\n").split("\n")
    assert list(vocab.tokens) == [json.loads(line) for line in lines]
    assert len(set(vocab.tokens)) == len(vocab)
    assert vocab.decode(vocab.encode(vocab.tokens)) == list(vocab.tokens)


SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1, "BOOL": 1}
GOOD_HEADER = {
    "weight_ih_l0": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "weight_hh_l0": {"dtype": "F32", "shape": [2, 2], "data_offsets": [24, 40]},
}
sizes = st.integers(0, 4) | st.sampled_from([2**31, 2**32, 2**62, 2**63, -1])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*SIZES, "F8_E4M3", "F4", "C64", "XX", "I4"]),
        "shape": st.lists(sizes, max_size=4),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)


@st.composite
def weight_files(draw):
    """Headers true and absurd, of a length true and absurd, and as much data as fits a
    single array in half of them."""
    header = draw(st.dictionaries(st.text(max_size=4), entries, max_size=2) | any_json)
    dtype = draw(st.sampled_from(sorted(SIZES)))
    shape = draw(st.lists(st.integers(0, 3), max_size=70))
    size = SIZES[dtype] * int(np.prod(shape, dtype=object)) if len(shape) < 9 else 0
    if draw(st.booleans()):
        header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    lengths = st.just(len(text)) | st.sampled_from([0, 10 * 2**30, 2**64 - 1])
    length = struct.pack("<Q", draw(lengths | st.integers(0, 2**64 - 1)))
    return length + text + bytes(min(size, 10**5))


def safetensors(header, size):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(range(size))


@fuzz
@given(content=files(safetensors(GOOD_HEADER, 40)) | weight_files())
def test_weights(directory, content):
    path = directory / "weights.safetensors"
    arrays = read_or_refuse(torch_weights.load_safetensors, path, content)
    if arrays is None:
        return
    # No array is larger than the file that it came from.
    assert sum(array.nbytes for array in arrays.values()) <= len(content)
    try:
        variables = torch_weights.from_torch(arrays, jaxrnn.RNN(2, use_bias=False))
    except ValueError as error:
        assert_one_line(error, "state_dict")
        return
    w_x = np.frombuffer(content[-40:-16], np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(variables["params"]["l0"]["w_x"], w_x)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    Checkpoints(directory).save(3, {"w": jnp.ones(2)}, info={"epoch": 1}, metric=0.5)
    return directory, (directory / "step_3" / "record.json").read_bytes()


names = st.sampled_from(["metric", "info", "leaves", "sha256", "w", "new"])


@half
@given(
    changes=st.dictionaries(names, any_json, max_size=2),
    removed=st.lists(names, max_size=1),
)
def test_signed_records_of_checkpoints(checkpoint, changes, removed):
    """With other things in them, and a digest as if nothing had happened."""
    directory, good = checkpoint
    record = json.loads(good.split(b"\n")[0]) | changes
    text = json.dumps({k: v for k, v in record.items() if k not in removed})
    digest = hashlib.sha256(text.encode()).hexdigest()
    (directory / "step_3" / "record.json").write_text(f"{text}\n{digest}\n")
    assert_restored_or_refused(directory)


@half
@given(data=st.data())
def test_damaged_records_of_checkpoints(checkpoint, data):
    directory, good = checkpoint
    content = data.draw(files(good))
    (directory / "step_3" / "record.json").write_bytes(content)
    assert_restored_or_refused(directory)


def assert_restored_or_refused(directory):
    checkpoints = Checkpoints(directory)
    for which in ("last", "best"):
        try:
            state, _ = checkpoints.restore({"w": jnp.zeros(2)}, which)
        except ValueError as error:
            assert_one_line(error, directory)
        else:
            np.testing.assert_array_equal(state["w"], [1, 1])


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    Checkpoints(directory).save(3, {"w": jnp.ones(2)}, info={}, metric=0.5)
    files = [f for f in (directory / "step_3" / "state").rglob("*") if f.is_file()]
    return directory, {file: file.read_bytes() for file in sorted(files)}


@half
@given(data=st.data())
def test_files_of_checkpoints(state_file, data):
    directory, contents = state_file
    file = data.draw(st.sampled_from(list(contents)))
    file.write_bytes(data.draw(damaged(contents[file])))
    try:
        assert_restored_or_refused(directory)
    finally:
        file.write_bytes(contents[file])
