"""Reviews in CSV files, generated ones, and how they are split."""

import dataclasses
import re

import pytest

from experiments.imdb.datasets import Reviews, Split, generate, read_csv


def texts_of(loaded: Reviews) -> list[str]:
    return loaded.train.texts + loaded.validation.texts + loaded.test.texts


def rows(count: int, first: int = 0) -> str:
    labels = ("neg", "POS", "0", "1", "Negative", " positive ")
    return "".join(f"r{i},{labels[i % 6]}\n" for i in range(first, first + count))


def write(path, content: str | bytes):
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(content)
    return path


def test_csv_keeps_every_review_with_its_label(tmp_path):
    text = 'label,more,text\n1,x,"two\nlines, a ""quote"" and é"\n\n'
    text += "".join(f"{i % 2},x,r{i}\n" for i in range(1, 100))
    path = write(tmp_path / "mine.csv", "\ufeff" + text.replace("\n", "\r\n"))
    loaded = read_csv(path)
    assert loaded.name == f"csv: {path}"
    sizes = [len(s.texts) for s in (loaded.train, loaded.validation, loaded.test)]
    assert sizes == [81, 10, 9]  # of 49 negative and 51 positive ones
    expected = {f"r{i}": i % 2 for i in range(1, 100)}
    expected['two\r\nlines, a "quote" and é'] = 1
    found = {}
    for split in (loaded.train, loaded.validation, loaded.test):
        found.update(zip(split.texts, split.labels.tolist(), strict=True))
        assert 0.35 < split.labels.mean() < 0.65
    assert found == expected


def test_csv_splits_are_a_function_of_the_seed(tmp_path):
    path = write(tmp_path / "mine.csv", "text,label\n" + rows(60))
    first, same, other = (read_csv(path, seed=seed) for seed in (1, 1, 2))
    assert texts_of(first) == texts_of(same)
    assert set(first.test.texts) != set(other.test.texts)
    in_file_order = sorted(first.train.texts, key=lambda text: int(text[1:]))
    assert first.train.texts != in_file_order


GOOD = "text,label\n" + rows(30)  # lines 2 to 31


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("review,label\nx,1\n", r"line 1: needs one column named 'text'.*review,label"),
        ("text,stars\nx,1\n", r"line 1: needs one column named 'label'.*text,stars"),
        ("", r"line 1: needs one column named 'text', the header is ''"),
        (
            GOOD + "fine,4 stars\n",
            r"line 32: label '4 stars', not 0, neg, ",
        ),
        (GOOD + "fine,\n", r"line 32: label ''"),
        ('text,label\n"a\nb",1\n  ,1\n', r"line 4: the review is empty"),
        (GOOD + "yes, fine,1\n", r"line 32: 3 columns, not 2.*'yes, fine,1'"),
        (GOOD + '"not closed,1\n', r"line 32: unexpected end of data"),
        (GOOD + "word " * 10**6 + ",1\n", r"line 32: field larger than field limit"),
        (
            GOOD.encode() + b"caf\xe9,1\n",
            r"line 32: not UTF-8: byte 0xe9 at offset 284",
        ),
        ("text,label\n", r"0 negative and 0 positive reviews: at least 10 of each"),
        ("text,label\n" + "x,1\n" * 99, r"0 negative and 99 positive reviews"),
        ("text,label\n" + rows(19), r"10 negative and 9 positive reviews"),
    ],
)
def test_bad_csv_files_name_file_line_and_value(tmp_path, content, message):
    path = write(tmp_path / "bad.csv", content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message) as e:
        read_csv(path)
    assert len(str(e.value)) < 400
    assert "\n" not in str(e.value)


def test_the_offset_of_a_bad_byte_counts_the_byte_order_mark(tmp_path):
    path = write(tmp_path / "bad.csv", b"\xef\xbb\xbftext,label\n\xff,1\n")
    with pytest.raises(ValueError, match="line 2: not UTF-8: byte 0xff at offset 14"):
        read_csv(path)


def test_a_csv_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv: cannot be read: No such file"):
        read_csv(tmp_path / "none.csv")


def test_generated_reviews_tell_their_label_and_repeat_by_seed():
    loaded = generate(200, seed=3)
    assert loaded.name == "generated"
    assert texts_of(loaded) == texts_of(generate(200, seed=3))
    assert texts_of(loaded) != texts_of(generate(200, seed=4))
    sizes = [len(s.texts) for s in (loaded.train, loaded.validation, loaded.test)]
    assert sizes == [160, 20, 20]
    seen = [
        {w for t, y in zip(loaded.train.texts, loaded.train.labels, strict=True)
         if y == label for w in t.split()}
        for label in (0, 1)
    ]  # fmt: skip
    assert len(seen[0] & seen[1]) == 10  # the neutral words
    for text, label in zip(loaded.test.texts, loaded.test.labels, strict=True):
        assert set(text.split()) - seen[1 - int(label)]


def test_the_fingerprint_is_of_texts_and_labels_alone():
    given, elsewhere = generate(100, seed=3), generate(100, seed=3)
    elsewhere.train.texts.reverse()
    elsewhere = dataclasses.replace(
        elsewhere,
        train=Split(elsewhere.train.texts, elsewhere.train.labels[::-1]),
        test=elsewhere.validation,
        validation=elsewhere.test,
    )
    assert elsewhere.fingerprint == given.fingerprint
    given.test.labels[0] = 1 - given.test.labels[0]
    assert given.fingerprint != elsewhere.fingerprint
