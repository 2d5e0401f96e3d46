"""Words for units: what they are, and all that the program does with them."""

import json
import math
import re

import httpx
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.charlm import datasets as charlm_datasets
from experiments.charlm import serve
from experiments.charlm.config import SMOKE
from experiments.charlm.datasets import Text
from experiments.charlm.generator import Writer
from experiments.charlm.units import BYTES, CHARACTERS, WORDS, _pieces_of_words
from jaxrnn import serving
from jaxrnn.text import EOS, UNK
from tests.harness.local_server import served
from tests.imdb.test_train import assert_refused

pytestmark = pytest.mark.slow

TREEBANK = " no it was n't <unk> \n mr. <unk> is N years old \n"  # as it is published


def tokens_of(units, text):
    return [token for tokens in units.tokens(text) for token in tokens]


@given(st.text(alphabet=" \n\tab\u00e9\u0301\u2003\x1c", max_size=40))
def test_words_are_written_as_they_were_read_but_for_white_space(text):
    tokens = tokens_of(WORDS, text)
    written = "".join(WORDS.written(tokens))
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert charlm_datasets.nfc("\n".join(lines)) == written
    assert tokens_of(WORDS, written) == tokens


@given(st.text(alphabet=" \nab", max_size=40), st.integers(1, 9))
def test_pieces_are_cut_between_words(text, size):
    parts = list(_pieces_of_words(text, size))
    assert "".join(parts) == text
    found = [token for part in parts for token in tokens_of(WORDS, part)]
    assert found == tokens_of(WORDS, text)
    assert all(re.match(r"\s", part) for part in parts[1:])


def test_characters_and_bytes_are_written_one_by_one():
    for units in (CHARACTERS, BYTES):
        assert units.written(["a", "\n"], before="b") == ["a", "\n"]


def test_a_treebank_has_its_own_unknown_word():
    train = TREEBANK * 30
    vocab = WORDS.make_vocab(Text("ptb", TREEBANK, validation=train))
    words = ["no", "it", "was", "n't", "mr.", "is", "N", "years", "old"]
    assert vocab.tokens[:2] == (UNK, EOS)
    assert sorted(vocab.tokens[2:]) == sorted(words)  # though each occurs once
    text = "it was new \n"
    ids = WORDS.encode(text, vocab)
    assert vocab.decode(ids) == ["it", "was", UNK, EOS]


def test_words_that_occur_once_are_unknown_in_other_texts():
    text = Text(
        "text", "to be or not to be\nthat is to be\n", validation="or not or not"
    )
    assert WORDS.make_vocab(text).tokens == (UNK, EOS, "be", "to")
    # <unk> as a part of a word is none.
    text = Text("text", "to be <unk>, to be <unk>x or not\n", validation="not or")
    assert WORDS.make_vocab(text).tokens == (UNK, EOS, "be", "to")


def test_a_vocabulary_of_limited_size_has_the_most_frequent_words():
    text = Text("text", "c b a a b a b a c c a a\n", validation="c")
    assert WORDS.make_vocab(text, 4).tokens == (UNK, EOS, "a", "b")
    assert WORDS.make_vocab(text, 99).tokens == (UNK, EOS, "a", "b", "c")
    without = Text("text", "c b a a b a b a c c a a", validation="c\n")
    assert WORDS.make_vocab(without, 3).tokens == (UNK, "a", "b")[:3]
    assert WORDS.beginning(WORDS.make_vocab(without)) == "a"


@pytest.fixture(scope="module")
def run(module_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "run"
    result = module_run("--smoke", "--words", "--test-share", 0.1, "--workdir", path)
    return path, result


@pytest.fixture(scope="module")
def writer(run):
    return Writer.load(run[0])


def nats_of(writer, text):
    """Of all words but the first, in one pass."""
    ids = writer.encode(text)
    logits, _ = writer._model.apply(writer._variables, ids[None, :-1])
    logs = np.asarray(jax.nn.log_softmax(logits[0]))
    return -logs[np.arange(ids.size - 1), ids[1:]]


def test_it_learns_sums_and_says_how_perplexed_it_is(run, writer):
    path, (code, out, err) = run
    assert (code, err) == (0, "")
    results = json.loads((path / "results.json").read_text())
    text = charlm_datasets.generate(16_000, seed=SMOKE.seed, spaced=True)
    share = round(len(text.content) / 10)
    test = text.content[-share:]
    words = len(test.replace("\n", " <eos> ").split())
    first, second, *_ = out.splitlines()
    assert f", {words} to test; " in first
    assert " words to train, " in first
    assert second == (
        f"{len(writer.vocab)} words in the vocabulary; 0.0% of those to train are "
        "unknown, 0.0% of those to validate"
    )
    nats = nats_of(writer, test).mean()
    assert results["test_nats_stateful"] == pytest.approx(nats, rel=1e-5)
    perplexity = results["test_perplexity_stateful"]
    assert perplexity == pytest.approx(math.exp(nats), rel=1e-5)
    # Two digits of each line nobody can know: 100 ** (1 / 7) of its 7 words.
    assert 100 ** (1 / 7) < perplexity < 3
    assert (
        out.splitlines()[-3]
        .split("; ")[1]
        .startswith(
            "test perplexity per word "
            f"{results['test_perplexity_window_64']:.2f} windows of 64 ("
        )
    )
    lines = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    best = min(lines, key=lambda line: line["validation_nats_stateful"])
    assert results["best_epoch"] == best["epoch"]
    expected = math.exp(best["validation_nats_stateful"])
    assert best["validation_perplexity"] == pytest.approx(expected)
    assert best["words_per_second"] > 0


def test_the_table_has_perplexities(run):
    _, (_, out, _) = run
    header = out.splitlines()[2:4]
    assert header[0].split().count("validation") == 4
    assert "perplexity" in header[1]


def test_a_sample_has_spaces_and_lines(run, writer, charlm_run):
    path, _ = run
    options = ("--sample", "--workdir", path, "--length", 60, "--temperature", 0.5)
    code, out, err = charlm_run(*options)
    assert (code, err) == (0, "")
    tokens = tokens_of(WORDS, out[:-1])
    assert len(tokens) == 60
    for line in out.splitlines()[:-1]:
        assert re.fullmatch(r"\d \+ \d = \d+ \.", line)
    # What follows a prompt, at whatever length of the pieces that are shown.
    options = (*options, "--length", 230)
    text = charlm_run(*options, "--prompt", "  8   + ")[1]
    assert text.startswith("8 + ")
    assert "\n " not in text
    assert "  " not in text
    assert len(tokens_of(WORDS, text[:-1])) == 2 + 230


def test_unknown_words_are_read_as_such_or_skipped(run, writer, charlm_run, tmp_path):
    path, _ = run
    assert writer.known("8 + x", "it", skip=False) == "8 + x"
    assert writer.known("8 y + x", "it", skip=True) == "8 +"
    with pytest.raises(ValueError, match=r"^it has no word of the model's vocabulary"):
        writer.known(" x ", "it", skip=True)
    with pytest.raises(ValueError, match=r"^it has no word of the model's vocabulary"):
        writer.known("  ", "it", skip=False)
    options = ("--sample", "--workdir", path, "--length", 5, "--prompt", "8 + x =")
    assert charlm_run(*options)[1].startswith("8 + x = ")
    known = charlm_run(*options, "--unknown", "skip")[1]
    assert known.startswith("8 + = ")


def test_a_score_is_a_perplexity(run, writer, charlm_run, tmp_path):
    path, file = run[0], tmp_path / "text"
    text = "8 + 6 = 14 .\nfive + 2 = 7 .\n1 + 1 = 2 ."
    file.write_text(text)
    options = ("--workdir", path, "--score", file)
    code, out, err = charlm_run(*options, "--per-character")
    assert (code, err) == (0, "")
    *each, total = out.splitlines()
    words = text.replace("\n", " <eos> ").split()
    assert [line.split("\t")[0] for line in each] == [repr(w) for w in words[1:]]
    nats = nats_of(writer, text.replace("five", UNK))
    found = [float(line.split("\t")[1]) for line in each]
    np.testing.assert_allclose(found, nats, atol=6e-5)  # four digits are printed
    mean = nats.mean()
    assert total == (
        f"{file}: {mean:.4f} nats, perplexity {math.exp(mean):,.2f} per word "
        f"({len(words) - 1} predicted, {1 / (len(words) - 1):.1%} of them unknown)"
    )
    file.write_text("8")
    assert_refused(charlm_run(*options), f"{file} has only one word: at least two")


def test_the_page_of_activations_has_words(run, charlm_run, tmp_path):
    file, page = tmp_path / "text", tmp_path / "page.html"
    file.write_text("8 + 6 = 14 .\n5 + x")
    options = ("--workdir", run[0], "--neurons", file, "--html", page)
    assert charlm_run(*options)[0] == 0
    [data] = re.findall(r'id="data">(.*?)</script>', page.read_text())
    data = json.loads(data)
    assert "".join(data["characters"]) == "8 + 6 = 14 .\n5 + <unk>"
    assert data["tokens"] == ["8", "+", "6", "=", "14", ".", EOS, "5", "+", UNK]


def test_an_exported_model_says_how_to_make_words(run, writer, charlm_run, tmp_path):
    directory = tmp_path / "exported"
    assert charlm_run("--workdir", run[0], "--export", directory)[0] == 0
    exported = serving.load(directory)
    assert exported.card["tokenizer"] == {
        "kind": "whitespace",
        "normalization": "NFC",
        "end_of_line": EOS,
        "unknown": UNK,
        "beginning": EOS,
    }
    assert exported.vocabulary == [*writer.vocab.tokens]


def test_words_are_served(writer):
    service = serve.Service(writer, "Model of sums")
    with served(service.app, service.close) as url:
        body = {"prompt": "8  +", "length": 40, "seed": 3, "alternatives": 2}
        found = httpx.post(f"{url}/generate", json=body, timeout=60).json()
        [expected] = zip(*writer.write("8 +", 40, 1, seed=3, top_p=1.0), strict=True)
        assert found["text"] == "".join(expected)
        assert "".join(found["words"]) == found["text"]
        assert len(found["words"]) == len(found["probabilities"]) == 40
        assert {w.strip(" ") for w in found["words"]} <= {*writer.vocab.tokens, "\n"}
        for place in found["alternatives"]:
            assert {word for word, _ in place} <= {*writer.vocab.tokens}
        parts = []
        streamed = body | {"stream": True}
        with httpx.stream(
            "POST", f"{url}/generate", json=streamed, timeout=60
        ) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    parts.append(json.loads(line.removeprefix("data: ")))
        assert parts[-1] == {"words": 40}
        assert "".join(part["text"] for part in parts[:-1]) == found["text"]
        model = httpx.get(f"{url}/model").json()
        assert model["units"] == "words"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (
            "to be or not, that is the question\n",
            [],
            "--words: no word occurs twice in",
        ),
        (
            "to be to be to be to be     \u2003 .",
            [],
            "the part to validate has 1 words",
        ),
        ("a b a b a b c " * 9, ["--validation", "x"], "the part to validate has 1 w"),
    ],
)
def test_texts_of_too_few_words(tmp_path, charlm_run, content, arguments, message):
    (tmp_path / "text").write_text(content)
    (tmp_path / "x").write_text("word")
    options = [tmp_path / x if x == "x" else x for x in arguments]
    options += ["--words", "--text", tmp_path / "text", "--workdir", tmp_path / "run"]
    assert_refused(charlm_run(*options), message)
    assert not (tmp_path / "run").exists()


def test_a_run_of_words_is_used_as_such(run, charlm_run):
    result = charlm_run("--workdir", run[0], "--bytes", "--sample")
    assert_refused(result, "(bytes False, not True)")
    result = charlm_run("--workdir", run[0], "--smoke", "--test-share", 0.1)
    assert_refused(result, "words True, not False")
