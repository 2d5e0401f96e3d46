"""`--export` of the character model: what it writes gives the numbers of the run."""

import shutil

import jax
import numpy as np
import pytest

from experiments.charlm.generator import Writer
from experiments.charlm.units import BYTES
from jaxrnn import serving
from tests.imdb.test_train import assert_refused

PROMPT = "8+6=14. "


def test_the_exported_model_writes_the_same_text(charlm_smoke, charlm_run, tmp_path):
    path, directory = charlm_smoke[0], tmp_path / "models" / "sums"
    code, out, err = charlm_run("--workdir", path, "--export", directory)
    assert (code, err) == (0, "")
    assert out.startswith(f"{directory}: the model in {path}, ")

    writer, exported = Writer.load(path), serving.load(directory)
    assert exported.vocabulary == [*writer.vocab.tokens]
    assert exported.card["tokenizer"] == {
        "kind": "characters",
        "normalization": "NFC",
        "beginning": writer.beginning,
    }
    pieces = writer.write(PROMPT, 30, 1, seed=0, temperature=0)
    expected = "".join(piece for [piece] in pieces)
    ids = np.array([[exported.vocabulary.index(c) for c in PROMPT]])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        state = exported.initial_state(1)
        logits, state = exported.prefill(ids, [ids.size], state)
        found = ""
        for _ in range(30):
            best = int(logits[0].argmax())
            found += exported.vocabulary[best]
            logits, state = exported.step([best], state)
    assert found == expected

    again = charlm_run("--workdir", path, "--export", directory)
    assert_refused(again, f"{directory} is there already: name a new directory")


def test_a_model_of_bytes_says_so(charlm_smoke, tmp_path):
    writer = Writer.load(charlm_smoke[0])
    of_bytes = Writer(writer._model, writer._variables, writer.vocab, BYTES)
    of_bytes.export(tmp_path / "bytes")
    settings = serving.load(tmp_path / "bytes").card["tokenizer"]
    assert settings["kind"] == "bytes"
    assert settings["encoding"] == "latin-1"


def test_without_a_model(charlm_run, tmp_path):
    path, directory = tmp_path / "none", tmp_path / "exported"
    result = charlm_run("--workdir", path, "--export", directory)
    assert_refused(result, f"there is no trained model in {path}: train one with")
    assert not directory.exists()


@pytest.mark.parametrize("missing", ["vocab.txt", "checkpoints"])
def test_a_run_that_is_not_complete(charlm_smoke, charlm_run, tmp_path, missing):
    path, directory = shutil.copytree(charlm_smoke[0], tmp_path / "run"), tmp_path / "x"
    if missing == "checkpoints":
        shutil.rmtree(path / missing)
    else:
        (path / missing).unlink()
    result = charlm_run("--workdir", path, "--export", directory)
    assert_refused(result, str(path))
    assert not directory.exists()


def test_where_nothing_can_be_written(charlm_smoke, charlm_run, tmp_path):
    (tmp_path / "file").write_text("")
    result = charlm_run("--workdir", charlm_smoke[0], "--export", tmp_path / "file/x")
    assert_refused(result, f"{tmp_path}/file")
