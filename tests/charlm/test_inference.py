"""Inference with the character model: sampling, streamed, and scoring."""

import io
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.charlm import generator, inference
from experiments.charlm import model as charlm_model
from experiments.charlm import train as charlm_train
from experiments.charlm.config import Settings
from experiments.charlm.datasets import Text
from experiments.charlm.generator import Writer
from experiments.charlm.train import Options
from jaxrnn.checkpoints import Checkpoints
from jaxrnn.text import Vocab
from tests.harness.test_training_loop import files_below
from tests.imdb.test_train import assert_refused

SUM = "8+6=14. "


@pytest.fixture(scope="module")
def trained(charlm_smoke):
    return Writer.load(charlm_smoke[0])


def joined(pieces):
    return ["".join(parts) for parts in zip(*pieces, strict=True)]


def log_probabilities(trained, text):
    """Of every character after each but the last of the text, in one pass."""
    ids = trained.vocab.encode(list(text))
    logits, _ = trained._model.apply(trained._variables, ids[None])
    return ids, np.asarray(jax.nn.log_softmax(logits[0].astype(np.float32)))


def test_without_heat_the_likeliest_character_is_next(trained):
    length = 2 * generator.PIECE + 30
    pieces = list(trained.write(SUM, length, 1, seed=0, temperature=0))
    assert [len(piece) for [piece] in pieces] == [generator.PIECE] * 2 + [30]
    [text] = joined(pieces)
    ids, logs = log_probabilities(trained, SUM + text)
    likeliest = logs.argmax(axis=-1)[len(SUM) - 1 : -1]
    np.testing.assert_array_equal(likeliest, ids[len(SUM) :])


def test_a_text_depends_on_seed_and_number_alone(trained):
    three = joined(trained.write(SUM, 130, 3, seed=5))
    assert len(set(three)) == 3
    assert all(len(text) == 130 for text in three)
    assert joined(trained.write(SUM, 130, 1, seed=5)) == three[:1]
    assert joined(trained.write(SUM, 130, 1, seed=6)) != three[:1]


def test_nats_are_those_of_one_pass(trained, rng, monkeypatch):
    monkeypatch.setattr(generator, "CHUNK", 16)
    text = "".join(rng.choice(list(trained.vocab.tokens), 16 * 3 + 5))
    parts = list(trained.nats(trained.encode(text)))
    assert [part.size for part in parts] == [16, 16, 16, 4]
    ids, logs = log_probabilities(trained, text)
    expected = [-logs[k, ids[k + 1]] for k in range(len(text) - 1)]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-5, atol=1e-6)


def test_unknown_characters_are_named_or_skipped(trained):
    assert trained.known("1+1=2", "it", skip=False) == "1+1=2"
    with pytest.raises(ValueError, match=r"^it has .* vocabulary, 'a', 'é': leave"):
        trained.known("1é+aé", "it", skip=False)
    assert trained.known("1é+aé", "it", skip=True) == "1+"
    with pytest.raises(ValueError, match=r"^it has no character of the"):
        trained.known("éa", "it", skip=True)
    with pytest.raises(ValueError, match="'i', 'j' and others: leave them out"):
        trained.known("abcdefghijk", "it", skip=False)


@pytest.mark.parametrize(("tokens", "first"), [("ab\n", "\n"), ("ba", "b")])
def test_a_text_begins_after_a_line_break_if_there_are_any(tokens, first):
    model = charlm_model.make_model(Settings(), len(tokens))
    assert Writer(model, {}, Vocab(tuple(tokens))).beginning == first


def sample(charlm_run, path, *arguments):
    before = files_below(path)
    code, out, err = charlm_run("--sample", "--workdir", path, *arguments)
    assert (code, err) == (0, "")
    assert files_below(path) == before
    return out


def test_sample_prints_the_prompt_and_what_follows(
    charlm_smoke, trained, charlm_run, tmp_path, monkeypatch
):
    path = charlm_smoke[0]
    [text] = joined(trained.write(SUM, 150, 1, seed=3, temperature=0.5, top_k=2))
    options = ("--length", 150, "--seed", 3, "--temperature", 0.5, "--top-k", 2)
    expected = f"{SUM}{text}\n"
    assert sample(charlm_run, path, "--prompt", SUM, *options) == expected

    (tmp_path / "prompt").write_text(SUM)
    from_file = sample(charlm_run, path, "--prompt", f"@{tmp_path}/prompt", *options)
    assert from_file == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SUM.encode())))
    assert sample(charlm_run, path, "--prompt", "-", *options) == expected
    skipping = ("--prompt", f"é{SUM}a", "--unknown", "skip", *options)
    assert sample(charlm_run, path, *skipping) == expected


def test_several_samples_stand_below_each_other(charlm_smoke, trained, charlm_run):
    texts = joined(trained.write(trained.beginning, 30, 3, seed=0, min_p=0.1))
    options = ("--length", 30, "--num-samples", 3, "--min-p", 0.1)
    out = sample(charlm_run, charlm_smoke[0], *options)
    assert out == "\n----\n".join(texts) + "\n"


def test_without_a_model_one_is_trained_first(
    charlm_smoke, tmp_path, charlm_run, monkeypatch
):
    """Piped, the output has the text alone."""
    path = tmp_path / "run"

    def train(options, ready):
        ready(charlm_train.prepare(Text("sums", SUM * 400), options))
        print("epoch 1")
        shutil.copytree(charlm_smoke[0], options.workdir)

    monkeypatch.setattr(charlm_train, "train", train)
    arguments = ("--sample", "--workdir", path, "--length", 20, "--top-p", 0.9)
    code, out, err = charlm_run(*arguments)
    assert code == 0
    assert len(out) == 21
    assert err == (
        f"there is no trained model in {path}: training one first (the default takes "
        "about a minute)\nepoch 1\n"
    )
    assert charlm_run(*arguments) == (0, out, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty: give at least one character"),
        (["--prompt", "8+é"], "the prompt has characters outside the model's vocab"),
        (["--prompt", "é", "--unknown", "skip"], "the prompt has no character of the"),
        (["--prompt", "@nowhere"], "nowhere: cannot be read: No such file"),
        (["--length", 0], "--length must be at least 1, got 0"),
        (["--length", -5], "--length must be at least 1, got -5"),
        (["--num-samples", 0], "--num-samples must be at least 1, got 0"),
        (["--prompt", "@"], "--prompt @ names no file: give @FILE, or - and the"),
        (["--temperature", -1], "--temperature must be finite and at least 0, got -1"),
        (["--temperature", "nan"], "--temperature must be finite"),
        (["--temperature", "1e39"], "--temperature must be finite"),  # in float32
        (["--top-k", 0], "--top-k must be from 1 to 1114112, got 0"),
        (["--top-k", 99999999999], "--top-k must be from 1 to 1114112, got 9999999"),
        (["--top-k", 15], "--top-k must be at most 14, the size of the model's"),
        (["--top-p", "1e-50"], "--top-p must be above 0 and at most 1, got 1e-50"),
        (["--min-p", 1.5], "--min-p must be from 0 to 1, got 1.5"),
        (["--text", __file__], "other settings (text '4005 characters"),
        (["--hidden", 77], "hidden 32, not 77"),
        (["--seed", -1], "--seed must be from 0 to 4294967295, got -1"),
    ],
)
def test_what_cannot_be_written(charlm_smoke, charlm_run, arguments, message):
    path = charlm_smoke[0]
    result = charlm_run("--sample", "--workdir", path, *arguments)
    assert_refused(result, message)


@pytest.mark.parametrize(
    "arguments", [["--length", 0], ["--temperature", "nan"], ["--prompt", "@nowhere"]]
)
def test_what_cannot_be_written_is_known_before_training(
    tmp_path, charlm_run, arguments
):
    result = charlm_run(
        "--sample", "--smoke", "--workdir", tmp_path / "run", *arguments
    )
    assert_refused(result, str(arguments[1]).removeprefix("@"))
    assert not (tmp_path / "run").exists()


def test_score_is_the_mean_of_the_characters(
    charlm_smoke, trained, charlm_run, tmp_path
):
    text, path = "8+6=14. 5+2=8. é1+1=2. ", tmp_path / "text"
    path.write_text(text)
    arguments = ("--workdir", charlm_smoke[0], "--score", path)
    assert_refused(charlm_run(*arguments), f"{path} has characters outside the")
    code, out, err = charlm_run(*arguments, "--unknown", "skip", "--per-character")
    assert (code, err) == (0, "")
    known = text.replace("é", "")
    ids, logs = log_probabilities(trained, known)
    expected = [-logs[k, ids[k + 1]] for k in range(len(known) - 1)]
    *each, total = out.splitlines()
    assert [line.split("\t")[0] for line in each] == [repr(c) for c in known[1:]]
    found = [float(line.split("\t")[1]) for line in each]
    np.testing.assert_allclose(found, expected, atol=6e-5)  # four digits are printed
    nats = np.mean(expected)
    assert total == (
        f"{path}: {nats:.4f} nats, {nats / math.log(2):.4f} bits per character "
        f"({len(known) - 1} predicted)"
    )
    code, out, _ = charlm_run(*arguments, "--unknown", "skip")
    assert (code, out) == (0, f"{total}\n")


def test_standard_input_is_scored_as_a_file_is(
    charlm_smoke, charlm_run, tmp_path, monkeypatch
):
    text, path = b"8+6=14. 5+2=8. ", tmp_path / "text"
    path.write_bytes(text)
    workdir = ("--workdir", charlm_smoke[0])
    expected = charlm_run(*workdir, "--score", path)[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    code, out, err = charlm_run(*workdir, "--score", "-")
    assert (code, out, err) == (0, expected.replace(str(path), "standard input"), "")
    twice = charlm_run(*workdir, "--score", "-", "--neurons", "-")
    assert_refused(twice, "standard input is read once: give --score or --neurons a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty: give at least one character"),
        (b"1", "has only one character: at least two are needed"),
        (b"1+\xff", "line 1: not UTF-8: byte 0xff at offset 2"),
    ],
)
def test_what_cannot_be_judged(charlm_smoke, charlm_run, tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    result = charlm_run("--workdir", charlm_smoke[0], "--score", path)
    assert_refused(result, message)


def test_score_without_a_model(tmp_path, charlm_run):
    path = tmp_path / "none"
    result = charlm_run("--workdir", path, "--score", __file__)
    assert_refused(result, f"there is no trained model in {path}: train one with")
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b'"1"\n"2"\n', "is not the vocabulary of the run: it has 2 tok"),
        ("settings.json", b"{}", "settings.json is of another program or version"),
    ],
)
def test_files_that_are_not_those_of_the_run(
    charlm_smoke, tmp_path, charlm_run, name, content, message
):
    path = shutil.copytree(charlm_smoke[0], tmp_path / "run")
    (path / name).write_bytes(content)
    result = charlm_run("--sample", "--workdir", path)
    assert_refused(result, message)


def test_a_model_of_bytes_writes_bytes(tmp_path, charlm_run, monkeypatch):
    """Untrained, it writes any; the prompt goes in and comes out as it was."""
    settings = Settings(cell="gru", embed=2, hidden=3, batch=2, seq_len=5)
    options = Options(settings=settings, bytes=True, workdir=tmp_path / "run")
    run = charlm_train.prepare(Text("bytes", "\xc3\xa9" * 100), options)
    optimizer = charlm_model.make_optimizer(settings, 1)
    state = charlm_model.make_state(run.model, optimizer, settings)
    checkpoints = Checkpoints(run.workdir.checkpoints)
    with run.workdir.claimed(run.identity):
        run.workdir.write_vocab(run.vocab)
        checkpoints.save(1, state, info={}, metric=1.0)
    stdout = io.TextIOWrapper(io.BytesIO())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        arguments = ("--sample", "--workdir", run.workdir.path, "--prompt", "é\r\n")
        assert charlm_run(*arguments, "--length", 120)[0] == 0
    written = stdout.buffer.getvalue()
    assert written.startswith("é\r\n".encode())
    assert len(written) == 4 + 120 + 1
    assert len(set(written)) > 60  # of 256, about 95 are expected
    (tmp_path / "any").write_bytes(bytes(range(256)))
    arguments = ("--workdir", run.workdir.path, "--score", tmp_path / "any")
    *each, total = charlm_run(*arguments, "--per-character")[1].splitlines()
    spelled = [repr(bytes([k]))[1:] for k in range(1, 256)]  # without the b
    assert [line.split("\t")[0] for line in each] == spelled
    nats = float(total.split(": ")[1].split()[0])
    assert nats == pytest.approx(math.log(256), abs=0.1)
    assert total.endswith(" bits per byte (255 predicted)")


def test_a_closed_pipe_ends_quietly(charlm_smoke):
    """As `| head -c 9` does."""
    arguments = ["--sample", f"--workdir={charlm_smoke[0]}", "--length=1000000"]
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.charlm", *arguments],
        cwd=Path(charlm_train.__file__).parent.parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(9)) == 9
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_text_is_shown_as_it_is_made(charlm_smoke, monkeypatch):
    """What is on a buffered standard output when each piece is asked for, and at the
    end: all the pieces before."""
    written, pieces, seen = io.BytesIO(), [], []
    make = Writer.write

    def watched(*arguments, **options):
        for piece in make(*arguments, **options):
            pieces.extend(piece)
            yield piece
            seen.append(written.getvalue().decode())

    monkeypatch.setattr(Writer, "write", watched)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(written)))  # pyright: ignore[reportArgumentType]
    drawing = inference.Sampling(length=2 * generator.PIECE + 30)
    inference.sample(charlm_smoke[0], drawing, SUM.encode(), seed=3, skip=False)
    assert [len(piece) for piece in pieces] == [generator.PIECE] * 2 + [30]
    assert seen == [SUM + "".join(pieces[: k + 1]) for k in range(3)]
    assert written.getvalue().decode() == f"{seen[-1]}\n"
