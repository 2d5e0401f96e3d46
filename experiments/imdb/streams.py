"""Texts side by side in rows, for a language model that reads them chunk by chunk."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxrnn.batching import epoch_rng, pack_sequences, plan_packing
from jaxrnn.training import Batch

END = 0  # what follows the last word of a text: the id of padding, which is no word


class TextStreams:
    """The training batches for truncated backpropagation through time.

    In an epoch the texts follow each other in a random order, cut into `rows` parallel
    streams. A step reads `time` words of each, with the recurrent state of the step
    before; where a text begins the state is fresh. The target of a word is the next
    one, of the last word of a text `END`.

    What does not fill a step is left out: different texts in each epoch. Batches have
    only the rows `own`.
    """

    def __init__(
        self,
        texts: Sequence[np.ndarray],
        rows: int,
        time: int,
        seed: int,
        own: slice = slice(None),
    ):
        """Take the texts by the ids of their words, int32 [t] each.

        Raises:
            ValueError: they have too few words for one step.
        """
        self._texts = [text for text in texts if text.size]
        self._rows, self._time, self._seed, self._own = rows, time, seed, own
        words = sum(text.size for text in self._texts)
        self._steps = words // (rows * time)
        if not self._steps:
            raise ValueError(
                f"{words:,} words are too few for one step of {rows} rows with {time} "
                "words each: give more texts, or lower --batch or --seq-len"
            )

    @property
    def words(self) -> int:
        """The number of words that an epoch predicts."""
        return self._rows * self._time * self._steps

    def epoch(self, epoch: int) -> Sequence[Callable[[], Batch]]:
        """Return the batches of an epoch, each made when it is called.

        A batch has inputs and targets, and whether a text starts at each input:
        [rows, time] each.
        """
        order = epoch_rng(self._seed, epoch).permutation(len(self._texts))
        texts = [self._texts[i] for i in order]
        streams = {
            "inputs": np.concatenate(texts),
            "targets": np.concatenate([following(text) for text in texts]),
            "starts": np.concatenate([np.arange(text.size) == 0 for text in texts]),
        }
        streams = {
            name: array[: self.words].reshape(self._rows, -1)
            for name, array in streams.items()
        }
        streams["starts"][:, 0] = True
        return [functools.partial(self._cut, streams, k) for k in range(self._steps)]

    def _cut(self, streams: Batch, step: int) -> Batch:
        steps = slice(step * self._time, (step + 1) * self._time)
        return {name: array[self._own, steps] for name, array in streams.items()}


def following(text: np.ndarray) -> np.ndarray:
    """The word that follows each one of a text.

    >>> following(np.array([5, 3, 7], np.int32))
    array([3, 7, 0], dtype=int32)
    """
    return np.concatenate([text[1:], np.array([END], text.dtype)])


def packed_chunks(
    texts: Sequence[np.ndarray], rows: int, time: int, multiple: int = 1
) -> list[Batch]:
    """Batches with every word of whole texts, for a state that is carried along.

    Several texts share a row, and no text is in two. There are about `rows` rows, a
    multiple of `multiple`, in chunks of `time` words. To what `TextStreams` has, come
    weights: 0 at padding.
    """
    texts = [text for text in texts if text.size]
    lengths = [text.size for text in texts]
    longest = max(max(lengths), math.ceil(1.05 * sum(lengths) / rows))
    row_length = math.ceil(longest / time) * time
    plan = plan_packing(lengths, row_length)
    inputs, segment_ids = pack_sequences(texts, plan, row_length)
    targets, _ = pack_sequences([following(text) for text in texts], plan, row_length)
    packed = {
        "inputs": inputs,
        "targets": targets,
        "starts": np.diff(segment_ids, axis=1, prepend=0) > 0,
        "weights": (segment_ids > 0).astype(np.float32),
    }
    missing = -len(plan) % multiple
    packed = {
        name: np.pad(array, ((0, missing), (0, 0))) for name, array in packed.items()
    }
    return [
        {name: array[:, start : start + time] for name, array in packed.items()}
        for start in range(0, row_length, time)
    ]
