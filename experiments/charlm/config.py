"""The settings of the character model, and presets of them."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from experiments.harness.config import CellName
from experiments.harness.validation import (
    AMOUNT,
    COUNT,
    POSITIVE,
    SEED,
    SHARE,
    SHARE_BELOW_1,
)


@dataclass(frozen=True)
class Settings:
    """What a result depends on, the text aside."""

    cell: CellName = "gru"
    """Recurrent cell."""
    embed: int = 64
    """Features of the vector that a character becomes."""
    hidden: int = 256
    """Features of each recurrent layer."""
    layers: int = 1
    """Recurrent layers on top of each other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the factors in the layers' products. Sums, states and weights stay float32.
    bfloat16 is faster where the processor multiplies it: TPU, recent GPU or CPU."""
    tie_embeddings: bool = False
    """Use the vectors of the characters as weights of the output, too."""
    dropout: float = 0.0
    """Probability of dropping a feature between layers and before the output."""
    locked_dropout: bool = False
    """Drop the same features at all characters of a place in a step."""
    weight_drop: float = 0.0
    """Probability of dropping a recurrent weight, for a step in all places."""
    epochs: int = 4
    """Passes over the training text."""
    batch: int = 16
    """Places of the text that are read at once, in a step."""
    seq_len: int = 128
    """Characters read at each place in a step: how far back a gradient reaches."""
    state_reset_prob: float = 0.05
    """Probability that a place forgets before a step what it has read.
    A model that never does can get lost where a text begins, and stay so."""
    learning_rate: float = 1e-2
    """Greatest learning rate of Adam."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises to it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What it does then: fall to zero along a cosine, or stay."""
    weight_decay: float = 0.01
    """Share of each weight that a step takes off, times the learning rate.
    Not of biases."""
    clip: float | None = 1.0
    """Greatest norm of a gradient; longer ones are scaled down."""
    patience: int | None = 3
    """Stop early after so many epochs without a better validation."""
    seed: int = 0
    """Of the weights, of the order of the text and of dropout; and of what is drawn."""

    def check(self) -> None:
        """Whether they make sense.

        Raises:
            ValueError: they do not; the option is named.
        """
        COUNT.check(self, "embed", "hidden", "layers")
        COUNT.check(self, "epochs", "batch", "seq_len", "patience")
        SHARE.check(self, "dropout", "state_reset_prob", "warmup")
        SHARE_BELOW_1.check(self, "weight_drop")
        AMOUNT.check(self, "learning_rate", "weight_decay")
        POSITIVE.check(self, "clip")
        SEED.check(self, "seed")

    def fit_to(self, characters: int) -> "Settings":
        """The same with as many rows and steps as a training text can fill.

        >>> Settings(batch=16, seq_len=128).fit_to(1000).batch
        7
        """
        seq_len = min(self.seq_len, characters - 1)
        batch = min(self.batch, (characters - 1) // seq_len)
        return dataclasses.replace(self, batch=batch, seq_len=seq_len)


PRESETS = {
    # One layer, to be had in a minute.
    "quick": Settings(),
    # What two layers reach when they are given the time. Of all that keeps so many
    # weights from learning a short text by heart, their decay does the most.
    "best": Settings(
        cell="lstm", embed=128, hidden=512, layers=2, dtype="bfloat16", dropout=0.4,
        locked_dropout=True, weight_drop=0.2, epochs=20, batch=32, seq_len=64,
        learning_rate=4e-3, weight_decay=0.2,
    ),
    # Raschka, Liu and Mirjalili (2022), "Machine Learning with PyTorch and
    # Scikit-Learn", chapter 15, which models The Mysterious Island: 10,000 steps.
    "chapter": Settings(
        cell="lstm", embed=256, hidden=512, epochs=25, batch=64, seq_len=40,
        state_reset_prob=0.0, learning_rate=5e-3, warmup=0.0, schedule="constant",
        weight_decay=0.0, clip=None, patience=None,
    ),
}  # fmt: skip


SMOKE = Settings(
    cell="lstm", embed=8, hidden=32, epochs=3, batch=8, seq_len=16, learning_rate=2e-2,
    patience=None,
)  # fmt: skip
