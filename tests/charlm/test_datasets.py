"""Texts to model: where they come from, under which name, and what is refused."""

import hashlib
import re
import socket
import sys
import urllib.error
import urllib.request

import pytest

from experiments.charlm.datasets import (
    Text,
    decode,
    generate,
    load_shakespeare,
    read_files,
)
from tests.imdb.test_train import assert_refused

# The name tensorflow-datasets gives the official file in its cache of downloads.
CACHED = (
    "raw.gith.com_karp_char-rnn_mast_tiny_inpuhsTmqp23wELsefM53LltQrAHXha4_C6Gvwylfi3"
    "FZe0.txt"
)
PLAY = "".join(f"SPEAKER {k}:\nWhat, ho — are you café?\n\n" for k in range(40))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"network access: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def downloads(tmp_path):
    """A directory of downloads with another play, where nothing checks the hash."""
    directory = tmp_path / "downloads" / "tiny_shakespeare"
    directory.mkdir(parents=True)
    (directory / CACHED).write_text(PLAY, encoding="utf-8")
    (directory / f"{CACHED}.INFO").write_text("{}")
    return directory.parent


@pytest.mark.usefixtures("no_network")
def test_shakespeare_is_prepared_and_read_offline_without_tensorflow(
    tmp_path, downloads, capfd
):
    text = load_shakespeare(tmp_path / "data", downloads)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"preparing tiny_shakespeare in .*data \(once, .*\)\n", err)
    assert text == Text("tiny_shakespeare (tensorflow-datasets 1.0.0)", PLAY)
    assert "tensorflow" not in sys.modules
    # Prepared once, data_dir alone is enough and nothing is said.
    by_byte = load_shakespeare(tmp_path / "data", by_byte=True)
    assert by_byte.content.encode("latin-1") == PLAY.encode()
    assert by_byte.name == text.name
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_another_text_is_not_taken_for_shakespeare(tmp_path):
    path = tmp_path / "downloads" / "manual" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text(PLAY, encoding="utf-8")
    with pytest.raises(ValueError, match=r"remove what is damaged .*Checksum"):
        load_shakespeare(tmp_path / "data", tmp_path / "downloads")


def unreachable(url, timeout):
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize("missing", ["the network", "tensorflow-datasets"])
def test_what_python_carries_takes_its_place(tmp_path, monkeypatch, capsys, missing):
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    if missing == "tensorflow-datasets":
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    text = load_shakespeare()
    version = ".".join(map(str, sys.version_info[:3]))
    assert text.name == f"pydoc_data.topics of Python {version}"
    assert len(text.content) > 100_000
    assert 'The "yield" statement' in text.content.replace("“", '"').replace("”", '"')
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert text.name in err
    reason = "no route" if missing == "the network" else "tensorflow_datasets"
    assert reason in err
    by_byte = load_shakespeare(by_byte=True)
    assert by_byte.content.encode("latin-1") == text.content.encode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["the network", "tensorflow-datasets"])
@pytest.mark.parametrize("named", ["data", "downloads", "both"])
def test_nothing_takes_the_place_of_what_a_directory_is_named_for(
    tmp_path, monkeypatch, missing, named
):
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if missing == "tensorflow-datasets":
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    (tmp_path / "downloads").mkdir()
    options = {"data": "--data-dir", "downloads": "--download-dir"}
    told = [f"{options[k]} {tmp_path / k}" for k in options if named in (k, "both")]
    with pytest.raises(ValueError, match=re.escape(" and ".join(told))) as error:
        load_shakespeare(
            tmp_path / "data" if named != "downloads" else None,
            tmp_path / "downloads" if named != "data" else None,
        )
    assert "there is no tiny_shakespeare (" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["downloads"]


def test_a_mistyped_directory_of_downloads_is_not_made(tmp_path, charlm_run):
    places = ("--data-dir", tmp_path / "data", "--download-dir", tmp_path / "nope")
    result = charlm_run("--workdir", tmp_path / "run", *places)
    message = f"--download-dir {tmp_path}/nope is not a folder: name the one with the"
    assert_refused(result, message)
    assert list(tmp_path.iterdir()) == []


def test_files_are_one_text_in_the_order_given(tmp_path):
    (tmp_path / "b.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    (tmp_path / "a.txt").write_bytes("naïve résumé, façade".encode())
    text = read_files([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert text.content == "one\ntwo\nthree\nnaïve résumé, façade"
    assert text.name == f"text: {tmp_path / 'b.txt'}, {tmp_path / 'a.txt'}"


def test_letters_and_their_accents_are_one_text_however_they_are_encoded():
    composed, decomposed = "caf\xe9 \u30ac", "cafe\u0301 \u30ab\u3099"
    assert decode(decomposed.encode(), "prompt", False) == composed
    assert decode(composed.encode(), "prompt", False) == composed
    by_byte = decode(decomposed.encode(), "prompt", True)
    assert by_byte.encode("latin-1") == decomposed.encode()


def test_a_folder_is_its_files_in_order_hidden_ones_aside(tmp_path):
    for name, content in {
        "2.txt": "second part, ",
        "1/z.txt": "deep, ",
        "1/a.md": "deep and first, ",
        "3": "",
        "4.txt": "the end",
        ".git/config": "hidden",
        "1/.hidden": "hidden",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    text = read_files([tmp_path])
    assert text.content == "deep and first, deep, second part, the end"
    assert text.name == f"text: {tmp_path}"


def test_any_file_goes_by_byte_and_nothing_is_changed(tmp_path):
    content = bytes(range(256)) + b"\r\n\xef\xbb\xbf"
    (tmp_path / "any").write_bytes(content)
    text = read_files([tmp_path / "any"], by_byte=True)
    assert text.content.encode("latin-1") == content
    assert text.name == f"bytes: {tmp_path / 'any'}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("folder", "there is no text in it"),
        (b"", "there is no text in it"),
        (b"too short", "9 characters are too few: at least 20 are needed"),
        (b"a" * 1000, "all 1,000 characters are 'a': there is nothing to predict"),
        (
            b"a line\n" * 3 + b"caf\xe9\n" * 9,
            "line 4: not UTF-8: byte 0xe9 at offset 24: save it as UTF-8, or train ",
        ),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    path = tmp_path / "text"
    if content == "folder":
        (path / ".hidden").mkdir(parents=True)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_files([path])
    assert str(path) in str(error.value)


def test_the_split_is_nine_tenths_and_the_rest():
    text = Text("play", PLAY)
    train, validation = text.split()
    assert train + validation == PLAY
    assert len(train) == int(len(PLAY) * 0.9)


def test_a_published_split_is_taken_as_it_is():
    text = Text("play", PLAY, validation="to be", test="or not")
    assert text.split() == (PLAY, "to be")
    assert text.held_out == "or not"
    text = Text("play", PLAY, test="or not")
    assert text.split() == Text("play", PLAY).split()
    assert text.held_out == "or not"
    assert Text("play", PLAY, validation="to be").held_out == ""


@pytest.mark.parametrize("share", [1e-9, 0.05, 0.1, 0.499])
def test_a_third_part_is_cut_off_the_end(share):
    """As of enwik8: 90, 5 and 5 million of its 100 million bytes."""
    text = Text("play", PLAY, test_share=share)
    train, validation = text.split()
    assert train + validation + text.held_out == PLAY
    size = max(round(share * len(PLAY)), 2)
    assert [len(validation), len(text.held_out)] == [size, size]


def test_fingerprints_tell_texts_apart():
    digest = hashlib.sha256(PLAY.encode()).hexdigest()[:12]
    assert Text("play", PLAY).identity == {
        "text": f"{len(PLAY)} characters, {digest}",
        "validation": None,
        "test": None,
        "test_share": 0.0,
    }
    found = Text("play", PLAY[1:], validation=PLAY).identity
    assert found["validation"] == f"{len(PLAY)} characters, {digest}"


def test_generated_sums_are_right():
    sums = generate(4000, seed=3).content.split(". ")[:-1]
    assert len(sums) > 400
    assert len(set(sums)) > 90  # of 100 there are
    for line in sums:
        a, b, c = map(int, re.fullmatch(r"(\d)\+(\d)=(\d+)", line).groups())
        assert a + b == c
