"""Exported models: the numbers of the model, without this library; and files that are
cut, changed or of another version."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import serving
from jaxrnn.models import LanguageModel, SequenceClassifier
from jaxrnn.serving import loader

pytestmark = pytest.mark.slow

VOCAB = 11
TOKENS = np.array([[3, 1, 4, 1], [5, 9, 2, 0], [6, 0, 0, 0]], np.int32)
LENGTHS = np.array([4, 3, 1], np.int32)
WORDS = [f"word {k}\n" for k in range(VOCAB)]


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def classifier(num_classes=None, encoder=None):
    encoder = encoder or jaxrnn.LSTM(8, num_layers=2, bidirectional=True)
    model = SequenceClassifier(VOCAB, 5, encoder, num_classes=num_classes)
    variables = model.init(jax.random.key(0), TOKENS, lengths=LENGTHS)
    return model, variables


def language_model(encoder):
    model = LanguageModel(VOCAB, 5, encoder)
    return model, model.init(jax.random.key(0), TOKENS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A classifier, as a directory that tests must not change."""
    path = tmp_path_factory.mktemp("exported") / "reviews"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, variables = classifier()
        settings = {"kind": "words", "lower": True}
        serving.export(
            model,
            variables,
            path,
            vocabulary=WORDS,
            labels=["negative", "positive"],
            tokenizer=settings,
        )
    return path


# Compiled by the exported function and by the model: the order of sums may differ.
TOLERANCE = 1e-6


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_classifier_gives_the_same_logits(num_classes, tmp_path):
    model, variables = classifier(num_classes, jaxrnn.GRU(8))
    serving.export(model, variables, tmp_path / "model")
    loaded = serving.load(tmp_path / "model")
    for rows, time in ((3, 4), (1, 2), (2, 1)):
        tokens, lengths = TOKENS[:rows, :time], np.minimum(LENGTHS[:rows], time)
        expected = model.apply(variables, tokens, lengths=lengths)
        found = loaded.classify(tokens, lengths)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


ENCODERS = {
    "lstm": jaxrnn.LSTM(8, num_layers=2),
    "bfloat16": jaxrnn.GRU(8, dtype=jnp.bfloat16),
    "stack": jaxrnn.Stack([jaxrnn.GRU(8), jaxrnn.RNN(4)]),
}


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_a_language_model_reads_and_goes_on(encoder, tmp_path):
    model, variables = language_model(encoder)
    serving.export(model, variables, tmp_path / "model")
    loaded = serving.load(tmp_path / "model")
    # bfloat16 has 8 bits: products that are summed in another order round differently.
    tolerance = 0.02 if encoder is ENCODERS["bfloat16"] else TOLERANCE
    logits, state = loaded.prefill(TOKENS, LENGTHS, loaded.initial_state(3))
    expected, expected_state = model.apply(variables, TOKENS, lengths=LENGTHS)
    last = expected[np.arange(3), LENGTHS - 1]
    np.testing.assert_allclose(logits, last, atol=tolerance)
    for token in ([7, 7, 2], [1, 0, 10]):
        logits, state = loaded.step(token, state)
        expected, expected_state = model.apply(
            variables, jnp.array(token), expected_state, method="step"
        )
        np.testing.assert_allclose(logits, expected, atol=tolerance)
    wanted = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(expected_state)
    }
    assert state.keys() == wanted.keys()
    for name, found in state.items():
        np.testing.assert_allclose(found, wanted[name], atol=tolerance)
    one, _ = loaded.step([7], loaded.initial_state(1))
    alone = model.apply(variables, jnp.array([[7]]))[0][:, 0]
    np.testing.assert_allclose(one, alone, atol=tolerance)


WITHOUT_THE_LIBRARY = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"jaxrnn", "flax", "optax", "orbax", "safetensors"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import load

model = load.load(sys.argv[1])
logits = model.classify(json.loads(sys.argv[2]), json.loads(sys.argv[3]))
print(json.dumps([logits.tolist(), model.card["labels"], model.vocabulary]))
"""


def test_it_runs_with_jax_alone(exported, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    arguments = [str(moved), json.dumps(TOKENS.tolist()), json.dumps(LENGTHS.tolist())]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_LIBRARY, *arguments],
        cwd=moved,  # Where load.py is, and no jaxrnn.
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logits, labels, vocabulary = json.loads(done.stdout)
    model, variables = classifier()
    expected = model.apply(variables, TOKENS, lengths=LENGTHS)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
    assert (labels, vocabulary) == (["negative", "positive"], WORDS)


# JAX's own checks of symbolic shapes, which it resolves before it compiles.
OF_JAX = {"shape_assertion"}


def custom_calls(function):
    """What the module calls outside of it; its locations name files of this library."""
    text = function.mlir_module()
    targets = re.findall(r"custom_call @([\w.]+)", text)
    assert len(targets) == len(re.findall(r"\bcustom_call\b", text))
    return {*targets}


def test_one_file_has_all_platforms(exported):
    content = (exported / "classify.stablehlo").read_bytes()
    function = jax.export.deserialize(bytearray(content))
    assert function.platforms == ("cpu", "cuda", "tpu")
    card = json.loads((exported / "card.json").read_text())
    assert card["platforms"] == ["cpu", "cuda", "tpu"]
    assert card["functions"]["classify"]["inputs"] == ["int32[b,t]", "int32[b]"]
    assert card["functions"]["classify"]["outputs"] == ["float32[b]"]
    assert card["tokenizer"] == {"kind": "words", "lower": True}
    assert custom_calls(function) <= OF_JAX


def test_a_file_for_cpus_alone_has_no_kernels_of_this_library(tmp_path):
    model, variables = classifier()
    serving.export(model, variables, tmp_path / "model", platforms=["cpu"])
    content = (tmp_path / "model" / "classify.stablehlo").read_bytes()
    assert custom_calls(jax.export.deserialize(bytearray(content))) <= OF_JAX


def test_weights_are_an_ordinary_safetensors_file(exported):
    from safetensors.numpy import load_file

    _, variables = classifier()
    theirs = load_file(exported / "weights.safetensors")
    ours = loader.read_safetensors((exported / "weights.safetensors").read_bytes())
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    np.testing.assert_array_equal(
        ours["params/embed/embedding"], variables["params"]["embed"]["embedding"]
    )


FILES = ["weights.safetensors", "classify.stablehlo", "vocabulary.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["cut", "changed", "missing"])
def test_a_file_that_is_damaged_is_named_in_one_line(name, harm, exported, tmp_path):
    path = shutil.copytree(exported, tmp_path / "model")
    file = path / name
    content = file.read_bytes()
    if harm == "cut":
        file.write_bytes(content[:-1])
        match = rf"{name} in .*model is damaged: it has {len(content) - 1} bytes"
    elif harm == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        match = rf"{name} in .*model is damaged: its bytes are not those"
    else:
        file.unlink()
        match = rf"model lacks {name}, .* \(No such file or directory\)"
    with pytest.raises(ValueError, match=match) as raised:
        serving.load(path)
    assert "\n" not in str(raised.value)


def changed_card(exported, tmp_path, **entries):
    path = shutil.copytree(exported, tmp_path / "model")
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps(card | entries))
    return path


def test_another_jax_is_named(exported, tmp_path):
    path = changed_card(exported, tmp_path, calling_convention_version=99, jax="9.9")
    with pytest.raises(ValueError, match=r"was made by JAX 9\.9 .* install jax==9\.9"):
        serving.load(path)


def test_what_jax_cannot_read_is_said_in_one_line(exported, tmp_path, monkeypatch):
    def deserialize(content):
        raise RuntimeError("of another\nversion")

    monkeypatch.setattr(loader.export, "deserialize", deserialize)
    with pytest.raises(ValueError, match=r"classify\.stablehlo in .* of another versi"):
        serving.load(exported)


def test_another_format_is_named(exported, tmp_path):
    path = changed_card(exported, tmp_path, format=2)
    with pytest.raises(ValueError, match="has format 2, this loader reads 1"):
        serving.load(path)


def test_a_directory_that_holds_no_model(tmp_path):
    with pytest.raises(ValueError, match="is no exported model: no card"):
        serving.load(tmp_path)
    (tmp_path / "card.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match=r"card\.json in .* is damaged: Expecting"):
        serving.load(tmp_path)
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(ValueError, match=r"has format \[\], this loader reads 1"):
        serving.load(tmp_path)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    model, variables = classifier(encoder=jaxrnn.RNN(2))
    path = tmp_path / "model"
    path.mkdir()  # An empty one is as good as none.

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(serving.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            serving.export(model, variables, path)
    assert [*tmp_path.iterdir()] == [path]
    serving.export(model, variables, path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(FileExistsError, match="is there already: name a new directory"):
        serving.export(model, variables, path)
    assert before == {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"vocabulary": ["a"]}, "vocabulary must have 11 tokens, .* got 1"),
        ({"labels": ["a"]}, "labels must be 2, got 1"),
        ({"platforms": ["gpu"]}, r"platforms must be some of .*, got \['gpu'\]"),
        ({"platforms": []}, r"platforms must be some of .*, got \[\]"),
    ],
)
def test_options_that_do_not_fit(options, match, tmp_path):
    model, variables = classifier(encoder=jaxrnn.RNN(2))
    with pytest.raises(ValueError, match=match):
        serving.export(model, variables, tmp_path / "model", **options)
    assert not [*tmp_path.iterdir()]


def test_only_whole_models(tmp_path):
    with pytest.raises(TypeError, match="LanguageModel of Flax Linen, got LSTM"):
        serving.export(jaxrnn.LSTM(2), {}, tmp_path / "model")
    model, variables = language_model(jaxrnn.RNN(2))
    with pytest.raises(ValueError, match="a language model has none"):
        serving.export(model, variables, tmp_path / "model", labels=["a", "b"])


def test_a_function_of_another_kind_of_model(exported):
    with pytest.raises(ValueError, match=r"a classifier has no step, only \['classi"):
        serving.load(exported).step([1], {})


@pytest.mark.slow
def test_a_complex_state_is_loaded_again(tmp_path):
    layer = jaxrnn.Layer(jaxrnn.cells.LRUCell, features=4)
    model, tokens = jaxrnn.models.LanguageModel(9, 4, layer), np.array([[3, 1]])
    variables = model.init(jax.random.key(0), tokens)
    jaxrnn.serving.export(model, variables, tmp_path / "model", platforms=["cpu"])
    loaded = jaxrnn.serving.load(tmp_path / "model")
    (state,) = jax.tree.leaves(loaded.initial_state(1))
    assert state.dtype == np.complex64
