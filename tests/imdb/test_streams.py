"""The batches of a language model over texts: what is read, predicted and fresh."""

import numpy as np
import pytest

from experiments.imdb.streams import END, TextStreams, packed_chunks


def numbered(lengths):
    """Texts whose words are all different, so that each word has one place."""
    ends = np.cumsum(lengths)
    return [
        np.arange(end - n, end, dtype=np.int32) + 1
        for n, end in zip(lengths, ends, strict=True)
    ]


def target_of(texts):
    """The word after each, by the word."""
    return {
        int(word): int(after)
        for text in texts
        for word, after in zip(text, [*text[1:], END], strict=True)
    }


def joined(batches):
    """Each row as one stream."""
    return {
        name: np.concatenate([batch[name] for batch in batches], axis=1)
        for name in batches[0]
    }


def test_streams_are_the_texts_in_another_order_each_epoch():
    texts = numbered([5, 1, 12, 3, 7, 9, 2, 1])  # 40 words
    streams = TextStreams([*texts, np.zeros(0, np.int32)], rows=2, time=4, seed=3)
    assert streams.words == 40
    after, firsts = target_of(texts), {int(text[0]) for text in texts}
    seen = []
    for epoch in (0, 1, 0):
        batches = [make() for make in streams.epoch(epoch)]
        assert [batch["inputs"].shape for batch in batches] == [(2, 4)] * 5
        rows = joined(batches)
        assert sorted(rows["inputs"].ravel()) == list(range(1, 41))
        for word, target in zip(
            rows["inputs"].ravel(), rows["targets"].ravel(), strict=True
        ):
            assert after[int(word)] == target
        begins = {int(word) for word in rows["inputs"][rows["starts"]]}
        # The second row may begin within a text, where no state is from.
        assert begins == firsts | {int(rows["inputs"][1, 0])}
        seen.append(rows["inputs"].tolist())
    assert seen[0] == seen[2] != seen[1]


def test_a_text_goes_on_in_the_next_batch():
    streams = TextStreams(numbered([8]), rows=1, time=3, seed=0)
    batches = [make() for make in streams.epoch(0)]
    assert [batch["inputs"].tolist() for batch in batches] == [[[1, 2, 3]], [[4, 5, 6]]]
    assert [batch["targets"].tolist() for batch in batches] == [
        [[2, 3, 4]],
        [[5, 6, 7]],
    ]
    assert [batch["starts"].tolist() for batch in batches] == [
        [[True, False, False]],
        [[False, False, False]],
    ]


def test_batches_have_the_rows_of_this_process():
    texts = numbered([5, 6, 7, 8])
    whole = TextStreams(texts, 4, 2, seed=0)
    part = TextStreams(texts, 4, 2, seed=0, own=slice(2, 4))
    for make, make_part in zip(whole.epoch(1), part.epoch(1), strict=True):
        for name, array in make().items():
            np.testing.assert_array_equal(array[2:], make_part()[name])


def test_too_few_words_are_refused():
    message = "7 words are too few for one step of 2 rows with 4 words each"
    with pytest.raises(ValueError, match=message):
        TextStreams(numbered([7]), rows=2, time=4, seed=0)


@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_chunks_have_every_word_of_whole_texts_once(rng, multiple):
    texts = numbered(rng.integers(0, 40, size=30))
    chunks = packed_chunks(texts, rows=3, time=16, multiple=multiple)
    rows = joined(chunks)
    assert len(rows["inputs"]) % multiple == 0
    assert {chunk["inputs"].shape[1] for chunk in chunks} == {16}
    valid = rows["weights"] == 1
    words = sum(text.size for text in texts)
    assert sorted(rows["inputs"][valid]) == list(range(1, words + 1))
    after = target_of(texts)
    for word, target in zip(rows["inputs"][valid], rows["targets"][valid], strict=True):
        assert after[int(word)] == target
    firsts = [int(text[0]) for text in texts if text.size]
    assert sorted(rows["inputs"][rows["starts"]]) == sorted(firsts)
    # A text stands in one row, its words side by side.
    for row, valid_row in zip(rows["inputs"], valid, strict=True):
        steps = np.diff(row[valid_row])
        inside = ~np.isin(row[valid_row][1:], firsts)
        assert (steps[inside] == 1).all()
