"""The training batches of a text: its parallel streams."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from experiments.charlm.config import Settings
from jaxrnn.batching import epoch_rng, tbptt_batches
from jaxrnn.training import Batch


class Streams:
    """The training batches for truncated backpropagation through time.

    The text is cut into `settings.batch` parallel streams. A step reads `seq_len`
    tokens of each, with the recurrent state of the step before.

    Each epoch begins at another offset into the text, from its own random generator, so
    that the borders of steps and streams move. The same generator decides at which
    steps a stream's state is reset to zero. Batches have only the streams `own`.
    """

    def __init__(self, ids: np.ndarray, settings: Settings, own: slice = slice(None)):
        """Cut the text with these `ids` [n] as the settings say."""
        self._ids, self._own = ids, own
        self._streams, self._seq_len = settings.batch, settings.seq_len
        self._reset_prob, self._seed = settings.state_reset_prob, settings.seed
        self._steps = (ids.size - 1) // (self._streams * self._seq_len)

    @property
    def tokens(self) -> int:
        """The number of tokens that an epoch predicts."""
        return self._streams * self._seq_len * self._steps

    def epoch(self, epoch: int) -> Sequence[Callable[[], Batch]]:
        """Return the batches of an epoch, each made when it is called.

        A batch has inputs and targets [streams, seq_len], and which streams start with
        a zero state [streams].
        """
        rng = epoch_rng(self._seed, epoch)
        first = rng.integers(self._ids.size - self.tokens)
        text = self._ids[first : first + self.tokens + 1]
        starts = rng.random((self._steps, self._streams)) < self._reset_prob
        starts[0] = True
        return [
            functools.partial(
                dict, inputs=inputs[self._own], targets=targets[self._own], starts=rows
            )
            for (inputs, targets), rows in zip(
                tbptt_batches(text, self._streams, self._seq_len),
                starts[:, self._own],
                strict=True,
            )
        ]
