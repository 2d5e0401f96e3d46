"""Reviews in CSV files, generated ones, and how they are split."""

import csv
import dataclasses
import re

import numpy as np
import pytest

from experiments.imdb.datasets import Reviews, Split, generate, read_csv


def texts_of(loaded: Reviews) -> list[str]:
    return loaded.train.texts + loaded.validation.texts + loaded.test.texts


def pairs_of(loaded: Reviews):
    for part in loaded.parts.values():
        yield from zip(part.texts, part.labels.tolist(), strict=True)


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


def test_blank_lines_before_the_header_are_left_out(tmp_path):
    plain = write(tmp_path / "plain.csv", "label;text\n" + "1;a\n0;b\n" * 20)
    blank = write(tmp_path / "blank.csv", "\n\nlabel;text\n" + "1;a\n0;b\n" * 20)
    assert texts_of(read_csv(blank)) == texts_of(read_csv(plain))


def test_a_number_of_thousands_of_digits_is_a_label_like_any_other(tmp_path):
    long = "1" * 5000
    path = write(tmp_path / "a.csv", "label,text\n" + f"{long},a\nno,b\n" * 20)
    assert read_csv(path).classes == (long, "no")


GOOD = "text,label\n" + rows(30)  # lines 2 to 31


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "essay,label\nx,1\n",
            r"line 1: no text column (text, review, sentence, comment, content), the "
            r"header is 'essay,label': name the column with --text-column",
        ),
        (
            "text,review,label\nx,y,1\n",
            r"line 1: more than one text column (text, review), the header is",
        ),
        ("text,stars\nx,1\n", r"line 1: no label column (label, sentiment, class, "),
        ("", r"line 1: no text column"),
        (GOOD + "yes, fine,1\n", r"line 32: 3 columns, not 2: 'yes, fine,1': quote"),
        (
            GOOD + '"not closed,1\n',
            r"line 32: unexpected end of data: is a quote there",
        ),
        (GOOD + "word " * 10**6 + ",1\n", r"line 32: field larger than field limit"),
        (
            GOOD.encode() + b"caf\xe9,1\n",
            r"line 32: not UTF-8: byte 0xe9 at offset 284: save the file as UTF-8 (it "
            r"may be Windows-1252)",
        ),
        (GOOD.encode("utf-16"), r"save the file as UTF-8 (it begins as UTF-16 does)"),
        ("text,label\n", r": 0 texts with 0 labels: at least two are needed"),
        ("text,label\n" + "x,1\n" * 99, r": 99 texts with 1 label ('1'): at least two"),
        (
            "text,label\n" + rows(19),
            r"each label needs at least 10 texts to train, validate and test, 1 label "
            r"has fewer: 'positive' (9): remove those rows, or give another --label",
        ),
        (
            "text,label\n" + "".join(f"x,{k}\n" for k in range(99)),
            r"99 labels have fewer: '0' (1), '1' (1), '2' (1), '3' (1), '4' (1) and 94",
        ),
        (
            "text,label\n" + "x,neg\n" * 20 + "x,negative\n" * 20,
            r"1 label has fewer: 'positive' (0): remove those rows",
        ),
        (
            GOOD + "fine,\n ,1\n",
            r": 2 rows of 32 without text or label (lines 32, 33), at most 5% may be",
        ),
    ],
)
def test_bad_csv_files_name_file_line_and_value(tmp_path, content, message):
    path = write(tmp_path / "bad.csv", content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as e:
        read_csv(path)
    assert message in str(e.value)
    assert len(str(e.value)) < 400
    assert "\n" not in str(e.value)


def test_the_offset_of_a_bad_byte_counts_the_byte_order_mark(tmp_path):
    path = write(tmp_path / "bad.csv", b"\xef\xbb\xbftext,label\n\xff,1\n")
    with pytest.raises(ValueError, match="line 2: not UTF-8: byte 0xff at offset 14"):
        read_csv(path)


def test_rows_without_text_or_label_are_counted_and_left_out(tmp_path):
    table = '"a\nb",neg\n  ,1\nfine,\n' + rows(60)
    path = write(tmp_path / "mine.csv", "text,label\n" + table)
    loaded = read_csv(path)
    assert sorted(texts_of(loaded)) == sorted(["a\nb", *(f"r{k}" for k in range(60))])
    told = f"{path}: left out 2 rows without text or label (lines 4, 5)"
    assert loaded.notes == (told,)
    assert loaded.describe().splitlines()[-1] == told


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (("review", "sentiment"), {}),
        (("TEXT", " Label "), {}),
        (("my words", "STARS"), {"text_column": "My Words", "label_column": "stars"}),
        (("Comment", "x,;\ty"), {"label_column": "x,;\tY"}),
    ],
)
def test_columns_and_delimiters_are_found(tmp_path, header, columns, delimiter):
    texts = [f"a, b; c\td {k}" for k in range(20)]
    path = tmp_path / "mine.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", *header])
        writer.writerows([k, text, k % 2] for k, text in enumerate(texts))
    loaded = read_csv(path, **columns)
    assert dict(pairs_of(loaded)) == {text: k % 2 for k, text in enumerate(texts)}


def test_a_named_column_must_be_there(tmp_path):
    path = write(tmp_path / "mine.csv", GOOD)
    with pytest.raises(
        ValueError, match=r"--label-column 'stars' is in no column, the"
    ):
        read_csv(path, label_column="stars")


@pytest.mark.parametrize(
    ("spellings", "classes"),
    [
        (["spam", "Ham "], ("Ham", "spam")),
        (["1", "2"], ("1", "2")),
        (["10", "9.0", "-1"], ("-1", "9", "10")),
        (["1.0", "0.0"], ("negative", "positive")),
        (["neg", "neutral", "pos"], ("neg", "neutral", "pos")),
        (["True", "FALSE"], ("FALSE", "True")),
        (["1_1", "11", "2"], ("11", "1_1", "2")),
        (["5e1", "50"], ("50", "5e1")),
        (("12345678901234567", "12345678901234568"),) * 2,
        (["b\u00fccher", "sport", "b", "a"], ("a", "b", "b\u00fccher", "sport")),
    ],
)
def test_labels_of_any_name_and_number(tmp_path, spellings, classes):
    labels = [spelling for spelling in spellings for _ in range(20)]
    rows = [f"text {k},{label}" for k, label in enumerate(labels)]
    rows[1] = rows[1].swapcase().replace("TEXT", "text")
    path = write(tmp_path / "mine.csv", "\n".join(["text,label", *rows]))
    loaded = read_csv(path)
    assert loaded.classes == classes
    known = {name.strip().casefold(): k for k, name in enumerate(classes)}
    known |= {"1.0": 1, "0.0": 0, "9.0": 1} if "." in "".join(spellings) else {}
    assert dict(pairs_of(loaded)) == {
        f"text {k}": known[label.strip().casefold()] for k, label in enumerate(labels)
    }
    sizes = [len(s.texts) for s in loaded.parts.values()]
    assert sizes == [16 * len(classes), 2 * len(classes), 2 * len(classes)]
    for part in loaded.parts.values():
        assert len(set(np.bincount(part.labels))) == 1  # stratified


def test_a_file_to_test_on_and_unlabelled_texts(tmp_path):
    path = write(tmp_path / "mine.csv", GOOD)
    test = write(tmp_path / "test.csv", "label;review\n1;new a\nNEG;new b\n1;r3\n")
    # r4 has a label, and "new b" is to test on: they are not read as unlabelled.
    lines = write(tmp_path / "more.txt", "one\n\nr4\ntwo\nnew b\n")
    loaded = read_csv(path, test=test, unlabelled=lines)
    assert loaded.test.texts == ["new a", "new b", "r3"]
    assert loaded.test.labels.tolist() == [1, 0, 1]
    assert sorted(loaded.train.texts + loaded.validation.texts) == sorted(
        f"r{k}" for k in range(30)
    )
    assert len(loaded.validation.texts) == 2
    assert loaded.unlabelled == ["one", "two"]
    assert loaded.describe().splitlines() == [
        f"csv: {path}: 28 training, 2 validation, 3 test texts",
        "2 classes: negative (16), positive (17)",
        "1 text occurs in more than one part",
        "2 unlabelled texts",
    ]
    table = write(tmp_path / "more.csv", "id,text\n1,three\n2,\n3,r5\n")
    assert read_csv(path, unlabelled=table).unlabelled == ["three"]
    write(test, "text,label\nfine,mixed\n")
    with pytest.raises(
        ValueError, match=r"test.csv, line 2: no text of .*mine.csv has"
    ):
        read_csv(path, test=test)


def test_texts_in_two_parts_are_counted(tmp_path):
    path = write(tmp_path / "mine.csv", "text,label\n" + "same,0\n" * 20 + rows(60))
    assert "1 text occurs in more than one part" in read_csv(path).describe()


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
