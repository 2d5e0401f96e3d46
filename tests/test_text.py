"""Text to ids and back: what is a token, which ids it gets, what the file keeps."""

import doctest
import functools
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrnn import text
from jaxrnn.text import PAD, UNK, Vocab, char_tokens, word_spans, word_tokens

composed = functools.partial(unicodedata.normalize, "NFC")
words = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]))


def test_golden_from_reviews_to_ids():
    # Two reviews, as people write them.
    reviews = [
        "Good, GOOD fun!<br /><br />Don't miss",
        "Not good; don\u2019t bother. 3/10",
    ]
    tokens = [word_tokens(review) for review in reviews]
    # Case, breaks and punctuation are gone; "don't" is one token, so is the rating.
    assert tokens == [
        ["good", "good", "fun", "don't", "miss"],
        ["not", "good", "don't", "bother", "3/10"],
    ]
    # The specials come first, then "good" (3 times), "don't" (2), then the words seen
    # once in alphabetical order, digits before letters; "not" has no place among 7.
    vocab = Vocab.build(tokens, max_size=7)
    assert vocab.tokens == (PAD, UNK, "good", "don't", "3/10", "bother", "fun")
    # So in the second review only "not" is unknown.
    ids = vocab.encode(tokens[1])
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 2, 3, 5, 4]
    assert vocab.decode(ids) == [UNK, "good", "don't", "bother", "3/10"]


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        ("", []),
        (" .,;!? -- \n", []),
        ("One two\tthree\nfour", ["one", "two", "three", "four"]),
        ("don't", ["don't"]),
        ("don\u2019t", ["don't"]),
        ("'tis the actors' rock'n'roll", ["tis", "the", "actors", "rock'n'roll"]),
        ("it''s", ["it", "s"]),
        ("well-made", ["well", "made"]),
        ("_Alien_ snake_case", ["alien", "snake", "case"]),
        ("great!!! really?!", ["great", "really"]),
        ("e.g. U.S.A.", ["e", "g", "u", "s", "a"]),
        ("8/10", ["8/10"]),
        ("7.5/10, of 1,000.", ["7.5/10", "of", "1,000"]),
        ("in 1999. Then 3, 4", ["in", "1999", "then", "3", "4"]),
        ("the 80's, 2nd mp3", ["the", "80's", "2nd", "mp3"]),
        ("and/or 1/a", ["and", "or", "1", "a"]),
        ("end.<br /><br />start", ["end", "start"]),
        ("a<br>b<br/>c<BR />d<br\n/>e", ["a", "b", "c", "d", "e"]),
        ("<break> a < br", ["break", "a", "br"]),
        ("Čeština ÉTÉ Жизнь 日本", ["čeština", "été", "жизнь", "日本"]),
        ("\x00caf\xe9\ufffd\U0001f600", ["café"]),
        # Vowel signs are marks: without them "bad" and "about" are the same.
        ("हिन्दी फिल्म", ["हिन्दी", "फिल्म"]),
        ("बुरी बारे", ["बुरी", "बारे"]),
        ("தமிழ் படம்", ["தமிழ்", "படம்"]),
        ("น้ำ ดีมาก", ["น้ำ", "ดีมาก"]),
        ("فيلم مُمْتِع!", ["فيلم", "مُمْتِع"]),
        ("שָׁלוֹם, עולם", [composed("שָׁלוֹם"), "עולם"]),
        ("nai\u0308vete\u0301 NAI\u0308VE", ["naïveté", "naïve"]),
        ("\u0130yi I\u0307yi", ["i\u0307yi", "i\u0307yi"]),
        ("J\u030c", ["\u01f0"]),  # Only the small letter is one character.
        ("क्\u200dष ریش\u200cسفید", ["क्\u200dष", "ریش\u200cسفید"]),
        ("\u200da\u200d b\u200c", ["a", "b"]),
        ("\u0301 a\u0301_\u0301", ["\xe1"]),  # A mark without a letter separates.
        ("한국어 \u1112\u1161\u11ab", ["한국어", "한"]),
        # No blanks between words: what stands between two separators is one token.
        ("电影很好看。真的!", ["电影很好看", "真的"]),
        ("面白い映画、です", ["面白い映画", "です"]),
        ("หนังสนุกมาก 5/5", ["หนังสนุกมาก", "5/5"]),
    ],
)
def test_word_tokens(review, expected):
    assert word_tokens(review) == expected


@given(st.text())
def test_word_tokens_hold_nothing_that_separates_and_are_stable(review):
    tokens = word_tokens(review)
    assert not any(re.search(r"[\s_<>!?;:-]|^'|'$", token) for token in tokens)
    assert word_tokens(" ".join(tokens)) == tokens


@given(st.text())
def test_word_tokens_lose_no_letter_or_digit(review):
    lowered = composed(composed(review).lower())
    expected = Counter(filter(str.isalnum, re.sub(r"<br\s*/?>", "", lowered)))
    assert Counter(filter(str.isalnum, "".join(word_tokens(review)))) == expected


@given(st.text())
def test_characters_survive_the_round_trip(document):
    tokens = char_tokens(document)
    assert "".join(tokens) == composed(document)
    vocab = Vocab.build([tokens, ["a"]])
    assert "".join(vocab.decode(vocab.encode(tokens))) == composed(document)


@given(
    st.text(
        st.sampled_from(
            "aAeI\u0131\u0130J\u030c\u0301\u0307\u0316\u0323가\u11a8ᄒΣς' 한"
        )
    )
)
def test_equal_texts_have_equal_tokens_however_they_are_encoded(document):
    decomposed = unicodedata.normalize("NFD", document)
    assert word_tokens(decomposed) == word_tokens(document)
    assert char_tokens(decomposed) == char_tokens(document)


@given(
    st.text()
    | st.text("aB\u0130\u03a3\u1e9e\u2019'/.,1<br />")
    | st.text("aAJ<>\u030c\u0301\u0316\u0338\u094d\u200d\u0915\u1112\u1161\u11a8")
)
def test_word_spans_are_where_the_tokens_stand(review):
    spans = word_spans(review)
    places = [place for span in spans for place in span]
    assert places == sorted(places)
    # A sigma looks different at the end of a word, and so of a slice.
    found = [word_tokens(review[start:stop]) for start, stop in spans]
    assert [[token.casefold() for token in tokens] for tokens in found] == [
        [token.casefold()] for token in word_tokens(review)
    ]


def test_word_spans_by_hand():
    review = "\u0130f A<br />B, don\u2019t"
    assert word_spans(review) == [(0, 2), (3, 4), (10, 11), (13, 18)]
    # Three characters for two, a letter with two marks, and three of Korean for one.
    decomposed = "cafe\u0301 हिन्दी \u1112\u1161\u11ab!"
    assert word_spans(decomposed) == [(0, 5), (6, 12), (13, 16)]


@pytest.mark.parametrize("tokenize", [word_tokens, char_tokens])
@pytest.mark.parametrize("document", [b"bytes", None, ["a", "b"]])
def test_a_text_that_is_no_string_is_refused(tokenize, document):
    with pytest.raises(TypeError, match=f"got {type(document).__name__}"):
        tokenize(document)


@given(st.lists(words), st.integers(1, 3), st.integers(3, 8), st.randoms())
def test_build_takes_the_most_frequent_whatever_the_order(
    corpus, min_count, max_size, random
):
    # The oracle counts by hand: sort by name first, then stably by count.
    flat = [token for tokens in corpus for token in tokens]
    expected = sorted(
        [token for token in sorted(set(flat)) if flat.count(token) >= min_count],
        key=flat.count,
        reverse=True,
    )[: max_size - 2]
    if not expected:
        return
    shuffled = [random.sample(tokens, len(tokens)) for tokens in corpus]
    random.shuffle(shuffled)
    for sequences in (corpus, shuffled, iter(corpus)):
        vocab = Vocab.build(sequences, max_size=max_size, min_count=min_count)
        assert vocab.tokens == (PAD, UNK, *expected)
        assert len(vocab) == len(expected) + 2 <= max_size


def test_build_with_other_specials():
    corpus = [["b", "a", UNK, "b"]]
    assert Vocab.build(corpus, specials=()).tokens == ("b", UNK, "a")
    assert Vocab.build(corpus).tokens == (PAD, UNK, "b", "a")
    assert Vocab.build(corpus, specials=("<s>",)).encode(["<s>", "b"]).tolist() == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("corpus", "options", "error", "message"),
    [
        ([], {}, ValueError, "corpus is empty"),
        ([[], []], {}, ValueError, "corpus is empty"),
        ([[UNK]], {}, ValueError, "corpus is empty"),
        ([["a"]], {"max_size": 2}, ValueError, "max_size 2 leaves no room .* 3"),
        ([["a"]], {"max_size": -1}, ValueError, "max_size must be at least 1, got -1"),
        (
            [["a"]],
            {"max_size": 0, "specials": ()},
            ValueError,
            "max_size must be at least 1, got 0",
        ),
        ([["a"]], {"min_count": 0}, ValueError, "min_count .* got 0"),
        ([["a", "a"]], {"min_count": 3}, ValueError, "= 3 times, .* 2 times"),
        ([["a"]], {"specials": (PAD, PAD)}, ValueError, "'<pad>' occurs twice"),
        ([["a"]], {"specials": PAD}, TypeError, "specials must be .* got '<pad>'"),
        (["a review"], {}, TypeError, "the string 'a review'"),
        ("a review", {}, TypeError, "the string 'a'"),
        ([["a", 7]], {}, TypeError, "strings, got 7"),
    ],
)
def test_build_refuses(corpus, options, error, message):
    with pytest.raises(error, match=message):
        Vocab.build(corpus, **options)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ((), ValueError, "got none"),
        (("a", "b", "a"), ValueError, "'a' occurs twice"),
        (("a", None), TypeError, "got None"),
    ],
)
def test_vocab_refuses(tokens, error, message):
    with pytest.raises(error, match=message):
        Vocab(tokens)


@given(st.lists(st.text()))
def test_encode_and_decode_round_trip_but_for_unknown_tokens(tokens):
    known = tokens[::2]
    vocab = Vocab((PAD, UNK, *sorted({*known, "a"} - {PAD, UNK})))
    ids = vocab.encode(tokens)
    assert (ids.dtype, ids.shape) == (np.int32, (len(tokens),))
    expected = [t if t in {*known, "a", PAD, UNK} else UNK for t in tokens]
    assert vocab.decode(ids) == vocab.decode(ids.tolist()) == expected


def test_encode_without_unk_names_the_token():
    vocab = Vocab(("a", "b"))
    assert vocab.encode(["b", "a", "b"]).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"'#' is not among the 2 .* no '<unk>'"):
        vocab.encode(["a", "#", "b"])


def test_encode_refuses_text_that_is_not_tokenized():
    with pytest.raises(TypeError, match=r"the string 'a b'.*word_tokens"):
        Vocab((PAD, UNK, "a", "b")).encode("a b")


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 3], ValueError, "ids must be from 0 to 2, got 3"),
        ([-1], ValueError, "ids must be from 0 to 2, got -1"),
        ([[0, 1]], ValueError, r"shape \(1, 2\)"),
        ([0.5], TypeError, "got float64"),
        (["a"], TypeError, "got <U1"),
    ],
)
def test_decode_refuses(ids, error, message):
    with pytest.raises(error, match=message):
        Vocab((PAD, UNK, "a")).decode(ids)


@given(st.sets(st.text(st.characters()), min_size=1))  # characters(): surrogates too
def test_file_round_trip(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocab = Vocab(tuple(tokens))
    vocab.save(path)
    assert Vocab.load(path) == vocab
    assert Vocab.load(str(path)).tokens == tuple(tokens)


def test_file_is_one_json_string_a_line(tmp_path):
    path = tmp_path / "vocab.txt"
    Vocab((PAD, "\n", '"', "é", "\u2028")).save(path)
    assert path.read_bytes() == b'"<pad>"\n"\\n"\n"\\""\n"\\u00e9"\n"\\u2028"\n'


@pytest.mark.parametrize("data", [b'"a"\n"\xc3\xa9"', b'"a"\r\n"\xc3\xa9"\r\n'])
def test_file_edited_by_hand_is_read(tmp_path, data):
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    assert Vocab.load(path).tokens == ("a", "é")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "file is empty"),
        (b"\n", "line 1: not a JSON string: ''"),
        (b'"a"\n\n"b"\n', "line 2: not a JSON string: ''"),
        (b'"a"\nb\n', "line 2: not a JSON string: 'b'"),
        (b'"a"\n"b\n', "line 2: not a JSON string"),
        (b'"a" "b"\n', "line 1: not a JSON string"),
        (b'"a"\n7\n', "line 2: not a JSON string: '7'"),
        (b'["a"]\n', "line 1: not a JSON string"),
        (b"null\n", "line 1: not a JSON string"),
        (b'"a"\n' + b"[" * 100_000, "line 2: not a JSON string"),
        (b'"a"\n"b"\n"\\u0061"\n', "line 3: token 'a' is already on line 1"),
        (b'"a"\n"b"\n"caf\xe9"\n"d"\n', "line 3: not UTF-8"),
        (b"\x80\x04\x95pickle", "line 1: not UTF-8"),
    ],
)
def test_file_that_is_no_vocabulary_is_refused(tmp_path, data, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"vocab.txt.*{re.escape(message)}"):
        Vocab.load(path)


def test_equality_and_repr():
    assert Vocab(("a", "b")) == Vocab(("a", "b"))
    assert Vocab(("a", "b")) != Vocab(("b", "a"))
    assert repr(Vocab(("a", "b"))) == "<Vocab of 2 tokens>"


def test_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(text)
    assert failed == 0
    assert attempted >= 5


def test_a_surrogate_pair_is_refused_before_the_file_is_written(tmp_path):
    """JSON takes it for one character, which would be another token."""
    path = tmp_path / "vocab.txt"
    with pytest.raises(ValueError, match="surrogate pair"):
        Vocab(("<unk>", "\ud83d\ude00")).save(path)
    assert not path.exists()
    halves = Vocab(("<unk>", "\ud83d", "\ude00\ud83d"))
    halves.save(path)
    assert Vocab.load(path) == halves
