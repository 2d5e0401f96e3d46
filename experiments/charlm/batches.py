"""A text as character ids, and the training batches of its parallel streams."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from experiments.charlm.config import Settings
from experiments.charlm.datasets import pieces
from jaxrnn.batching import epoch_rng, tbptt_batches
from jaxrnn.text import Vocab, char_tokens
from jaxrnn.training import Batch


def encode(text: str, vocab: Vocab) -> np.ndarray:
    """The ids of the characters of a text.

    >>> encode("abba", Vocab(("a", "b")))
    array([0, 1, 1, 0], dtype=int32)
    """
    return np.concatenate([vocab.encode(char_tokens(piece)) for piece in pieces(text)])


class Streams:
    """The training batches: the text is read at `batch` places at once, `time`
    characters in a step, each place going on where the step before ended.

    An epoch starts a little later than the first character, by as much as its seed says
    and leaves over: so steps begin and end elsewhere in each. Its seed also says where
    a place forgets what it has read. Batches have the places `own` alone.
    """

    def __init__(self, ids: np.ndarray, settings: Settings, own: slice = slice(None)):
        self._ids, self._own = ids, own
        self._rows, self._time = settings.batch, settings.seq_len
        self._state_reset_prob, self._seed = settings.state_reset_prob, settings.seed
        self._steps = (ids.size - 1) // (self._rows * self._time)

    @property
    def characters(self) -> int:
        """How many an epoch predicts."""
        return self._rows * self._time * self._steps

    def epoch(self, epoch: int) -> Sequence[Callable[[], Batch]]:
        """The batches of an epoch, each made when it is called: inputs, targets, and
        the rows that start with a state of zeros."""
        rng = epoch_rng(self._seed, epoch)
        first = rng.integers(self._ids.size - self.characters)
        text = self._ids[first : first + self.characters + 1]
        starts = rng.random((self._steps, self._rows)) < self._state_reset_prob
        starts[0] = True
        return [
            functools.partial(
                dict, inputs=inputs[self._own], targets=targets[self._own], starts=rows
            )
            for (inputs, targets), rows in zip(
                tbptt_batches(text, self._rows, self._time),
                starts[:, self._own],
                strict=True,
            )
        ]
