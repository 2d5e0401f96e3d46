"""Word vectors from files of GloVe and fastText."""

import gzip
import json
import re

import numpy as np
import pytest

from experiments.imdb import model as imdb_model
from experiments.imdb import train as imdb_train
from experiments.imdb.vector_files import read_vectors
from jaxrnn.text import Vocab
from tests.imdb.test_options import tiny_arguments
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

WORDS = ["the", "film", "caf\u00e9", "paris", "bores"]
VOCAB = Vocab.build([WORDS])
FASTTEXT = (
    "7 3\n"
    "The 7 7 7\n"
    "the 1 -2 3.5 \n"  # as word2vec ends its lines
    "unheard 9 9 9\n"
    "Paris 0.5 0 -1\n"  # in no other case
    "PARIS 7 7 7\n"
    "cafe\u0301 -1 1e-1 2\n"  # in another Unicode form
    "the 7 7 7\n"
)
EXPECTED = {"the": [1, -2, 3.5], "paris": [0.5, 0, -1], "caf\u00e9": [-1, 0.1, 2]}


def row(table, word):
    return table[VOCAB.tokens.index(word)]


@pytest.mark.parametrize("kind", ["fasttext", "glove", "windows", "bom", "gzip"])
def test_words_have_their_vectors_up_to_one_factor(tmp_path, kind):
    path = tmp_path / "vectors.txt"
    content = FASTTEXT.encode()
    if kind == "glove":
        content = content.removeprefix(b"7 3\n") + b"film noir 9 9 9\n"
    elif kind == "windows":
        content = content.replace(b"\n", b"\r\n") + b"\r\n"
    elif kind == "bom":
        content = b"\xef\xbb\xbf" + content + b"\xff\xfe 1 2 3\n"
    elif kind == "gzip":
        path, content = tmp_path / "vectors.vec.gz", gzip.compress(content)
    path.write_bytes(content)
    found = read_vectors(path, VOCAB, scale=0.5)
    assert found.found == 3
    assert found.table.dtype == np.float32
    given = np.array(list(EXPECTED.values()))
    factor = 0.5 / np.sqrt(np.mean(given**2))
    for word, vector in EXPECTED.items():
        np.testing.assert_allclose(row(found.table, word), factor * np.array(vector))
    assert not found.table[:2].any()
    assert found.describe() == f"{path}: vectors of 3 numbers for 3 of the 5 words"


def test_words_without_a_vector_have_random_ones_of_the_same_size(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("the " + " ".join(["1", "-1"] * 500))
    one, same, other = (
        read_vectors(path, VOCAB, scale=0.5, seed=seed).table for seed in (0, 0, 1)
    )
    for word in ("film", "bores"):
        assert row(one, word).std() == pytest.approx(0.5, rel=0.1)
        assert abs(row(one, word).mean()) < 0.08
        assert not np.allclose(row(one, word), row(other, word))
    assert not np.allclose(row(one, "film"), row(one, "bores"))
    np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 1 2\nfilm 1 2 3\n", "line 2: 3 numbers, not 2: 'film 1 2 3'"),
        (b"the 1 2\n\nfilm 1\n", "line 3: 1 number, not 2: 'film 1'"),
        (b"2 3\nother 1 2\n", "line 2: 2 numbers, not 3: 'other 1 2'"),
        (b"the 1 2\nfilm\n", "line 2: 0 numbers, not 2: 'film'"),
        (b"the 1 2\nfilm x 2\n", "line 2: 'x' is not a number"),
        (b"the 1 nan\n", "line 1: 'nan' is not a number"),
        (b"the\n", "line 1: 'the' is no word with numbers"),
        (b"5 0\nthe\n", "line 2: 'the' is no word with numbers"),
        (b"le 1 2\n", "none of its words is among the 5 of the vocabulary"),
        (b"", "none of its words is among"),
        (b"the 0 0\n", "the vectors are zeros"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_vectors(path, VOCAB)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_compressed(tmp_path):
    path = tmp_path / "vectors.gz"
    path.write_text(FASTTEXT)
    with pytest.raises(ValueError, match=r"vectors\.gz: cannot be read: Not a gzipped"):
        read_vectors(path, VOCAB)
    path.write_bytes(gzip.compress(FASTTEXT.encode())[:-20])
    with pytest.raises(ValueError, match=r"vectors\.gz: cannot be read: "):
        read_vectors(path, VOCAB)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mine.csv"
    rows = "".join(f"{('dull', 'fine')[k % 2]} film {k},{k % 2}\n" for k in range(40))
    path.write_text(f"text,label\n{rows}")
    return path


def test_a_run_begins_with_them(tmp_path, table, program_run, monkeypatch):
    """--embed follows the file, and settings.json tells one file from another."""
    began, make_state = [], imdb_model.make_state

    def recording(*arguments):
        state = make_state(*arguments)
        began.append(np.asarray(state.params["params"]["embed"]["embedding"]))
        return state

    monkeypatch.setattr(imdb_train, "make_state", recording)
    vectors, path = tmp_path / "vectors.txt", tmp_path / "run"
    vectors.write_text("dull 1 0 0 0 0 0\nfine 0 0 2 0 0 0\n")
    arguments = [*tiny_arguments(path, table)]
    place = arguments.index("--embed")
    del arguments[place : place + 2]
    code, out, _ = program_run(*arguments, "--vectors", vectors)
    assert code == 0
    vocab = Vocab.load(path / "vocab.txt")
    words = len(vocab) - 2
    told = f"{vectors}: vectors of 6 numbers for 2 of the {words} words"
    assert out.splitlines()[2] == told
    [embedding] = began
    place = vocab.tokens.index("fine")
    expected = np.array([0, 0, 2, 0, 0, 0]) * 0.5 / np.sqrt(5 / 12)
    np.testing.assert_allclose(embedding[place], expected, rtol=1e-6)
    assert json.loads((path / "settings.json").read_text())["embed"] == 6
    result = program_run("--workdir", path, "--predict", "fine", *arguments[4:])
    assert (result[0], result[2]) == (0, "")

    vectors.write_text("dull 1 0 0 0 0 0\nfine 0 0 3 0 0 0\n")
    result = program_run(*arguments, "--vectors", vectors)
    assert_refused(result, "belongs to a run with other settings (vectors '")
    result = program_run(*arguments)
    assert_refused(result, "(embed 6, not 64, vectors '")
    result = program_run(*arguments, "--vectors", vectors, "--embed", 4)
    assert_refused(result, f"--embed 4 does not fit {vectors}, whose vectors have 6 n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--smoke"], "give either --smoke or --vectors, not both"),
        (["--predict", "a"], "--vectors needs a training: --predict trains nothing"),
        (["--no-pretrain"], "give either --vectors or --no-pretrain, not both"),
        (
            ["--csv", "x", "--unlabelled", "y"],
            "either --vectors or --unlabelled, not b",
        ),
    ],
)
def test_options_that_contradict_it(tmp_path, program_run, more, message):
    path = tmp_path / "run"
    result = program_run("--workdir", path, "--vectors", "v.txt", *more)
    assert_refused(result, message)
    assert not path.exists()
