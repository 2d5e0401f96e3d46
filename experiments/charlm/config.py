"""The hyperparameters of the character model, and presets of them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.harness.cells import CellName, has_recurrent_matrix
from experiments.harness.config import CommonSettings
from experiments.harness.validation import AMOUNT, COUNT, SHARE, SHARE_BELOW_1
from experiments.harness.workdir import WorkDir


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Hyperparameters of the model and its training."""

    cell: CellName = "gru"
    embed: int = 64
    hidden: int = 256
    """Hidden size of each recurrent layer."""
    layers: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    dropout: float = 0.0
    epochs: int = 4
    batch: int = 16
    """Parallel streams (batch size): the text is cut into so many parts."""
    learning_rate: float = 1e-2
    clip: float | None = 1.0
    patience: int | None = 3
    seed: int = 0
    seq_len: int = 128
    """Length of truncated backpropagation, in characters."""
    state_reset_prob: float = 0.05
    """Probability of resetting a stream's state to zero at a step.
    Without resets a model can do badly at the beginning of a text."""
    warmup: float = 0.05
    """Fraction of the steps over which the learning rate rises from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warmup: cosine decay to zero, or constant."""
    weight_decay: float = 0.01
    """AdamW weight decay (biases excluded)."""
    tie_embeddings: bool = False
    """Use the embedding matrix as the weights of the output layer too."""
    locked_dropout: bool = False
    """Use one dropout mask for all characters of a sequence (variational dropout)."""
    weight_drop: float = 0.0
    """Dropout rate of the recurrent weights (DropConnect), one mask per step."""

    def check(self) -> None:
        """Check the range of every field.

        Raises:
            ValueError: a field is out of range; the option is named.
        """
        super().check()
        COUNT.check(self, "seq_len")
        SHARE.check(self, "state_reset_prob", "warmup")
        SHARE_BELOW_1.check(self, "weight_drop")
        if self.weight_drop and not has_recurrent_matrix(self.cell):
            raise ValueError(
                f"--weight-drop drops weights of the state, and --cell {self.cell} has "
                "no matrix of them"
            )
        AMOUNT.check(self, "weight_decay")

    def fit_to(self, characters: int) -> "Settings":
        """Return the settings with a batch and length that a training text can fill.

        >>> Settings(batch=16, seq_len=128).fit_to(1000).batch
        7
        """
        seq_len = min(self.seq_len, characters - 1)
        batch = min(self.batch, (characters - 1) // seq_len)
        return dataclasses.replace(self, batch=batch, seq_len=seq_len)


# Settings of a run that settings.json of earlier versions does not have.
ADDED: dict[str, Any] = {"validation": None, "test": None, "test_share": 0.0}


def open_workdir(path: str | Path) -> WorkDir:
    """Return a work directory of this program, of an earlier version's runs too."""
    return WorkDir(path, ADDED)


PRESETS = {
    # One layer, trained in a minute or two.
    "quick": Settings(),
    # Two layers and an hour. Of the regularizers, which so many parameters need on a
    # text of a megabyte, weight decay matters most.
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
