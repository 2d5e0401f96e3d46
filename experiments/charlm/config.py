"""The hyperparameters of the language model, and presets of them."""

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
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Compute dtype of matrix products; parameters, states and sums stay float32.
    auto: the one with which a training step is faster here, by a measurement."""
    dropout: float = 0.0
    epochs: int = 4
    batch: int = 16
    """Parallel streams (batch size): the number of parts that the text is cut into."""
    learning_rate: float = 1e-2
    clip: float | None = 1.0
    patience: int | None = 3
    seed: int = 0
    seq_len: int = 128
    """Length of truncated backpropagation, in characters, bytes or words."""
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
    """Use one dropout mask for all steps of a sequence (variational dropout)."""
    weight_drop: float = 0.0
    """Dropout rate of the recurrent weights (DropConnect), one mask per step."""
    layer_dropout: float | None = None
    """Dropout rate between recurrent layers; None: that of --dropout."""
    input_dropout: float = 0.0
    """Dropout rate of the embedded inputs."""
    embedding_dropout: float = 0.0
    """Share of the vocabulary whose input embeddings are dropped at a step."""
    activation_penalty: float = 0.0
    """Factor of the mean square of the last layer's outputs in the loss (AR)."""
    temporal_penalty: float = 0.0
    """Factor of the mean square of their change from step to step in the loss (TAR)."""
    last_hidden: int | None = None
    """Hidden size of the last of several layers; None: that of --hidden."""
    optimizer: Literal["adamw", "nt-asgd"] = "adamw"
    """nt-asgd: gradient descent, averaged once validation stops getting better."""
    averaging_patience: int = 5
    """With nt-asgd: number of the last epochs that are not compared with.
    Averaging begins when validation is worse than the best before them."""

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
        AMOUNT.check(self, "weight_decay", "activation_penalty", "temporal_penalty")
        SHARE.check(self, "layer_dropout", "input_dropout")
        SHARE_BELOW_1.check(self, "embedding_dropout")
        COUNT.check(self, "last_hidden", "averaging_patience")
        for name in ("layer_dropout", "last_hidden"):
            if getattr(self, name) and self.layers < 2:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} needs --layers 2 or more")

    def fit_to(self, tokens: int) -> "Settings":
        """Return the settings with a batch and length that a training text can fill.

        >>> Settings(batch=16, seq_len=128).fit_to(1000).batch
        7
        """
        seq_len = min(self.seq_len, tokens - 1)
        batch = min(self.batch, (tokens - 1) // seq_len)
        return dataclasses.replace(self, batch=batch, seq_len=seq_len)


# Settings of a run that settings.json of earlier versions does not have.
ADDED: dict[str, Any] = {
    "validation": None,
    "test": None,
    "test_share": 0.0,
    "words": False,
    "vocabulary_size": None,
    "layer_dropout": None,
    "input_dropout": 0.0,
    "embedding_dropout": 0.0,
    "activation_penalty": 0.0,
    "temporal_penalty": 0.0,
    "last_hidden": None,
    "optimizer": "adamw",
    "averaging_patience": 5,
}


def open_workdir(path: str | Path) -> WorkDir:
    """Return a work directory of this program, of an earlier version's runs too."""
    return WorkDir(path, ADDED)


PRESETS = {
    # One layer, trained in a minute or two.
    "quick": Settings(),
    # Two layers and an hour. What was tried, and what it gave, is in docs/results.md.
    "best": Settings(
        cell="lstm", embed=128, hidden=768, layers=2, dtype="auto", dropout=0.5,
        locked_dropout=True, weight_drop=0.2, epochs=20, batch=32, seq_len=64,
        learning_rate=4e-3, weight_decay=0.2,
    ),
    # For texts of 5 to 100 MB, which need a larger model and less regularization than
    # one of a megabyte. Not tuned: docs/results.md has one training.
    "large": Settings(
        cell="lstm", embed=128, hidden=1024, layers=2, dtype="auto", dropout=0.1,
        locked_dropout=True, epochs=4, batch=64, seq_len=128, learning_rate=2e-3,
        weight_decay=0.1, state_reset_prob=0.02,
    ),
    # Merity, Keskar and Socher (2018), "Regularizing and Optimizing LSTM Language
    # Models", section 5, of Penn Treebank. Their sequences have random lengths, so that
    # the borders between them move; here each epoch begins elsewhere in the text.
    "awd": Settings(
        cell="lstm", embed=400, hidden=1150, last_hidden=400, layers=3, dtype="auto",
        dropout=0.4, layer_dropout=0.3, input_dropout=0.4, embedding_dropout=0.1,
        weight_drop=0.5, locked_dropout=True, tie_embeddings=True,
        activation_penalty=2.0, temporal_penalty=1.0, optimizer="nt-asgd", epochs=750,
        batch=40, seq_len=70, state_reset_prob=0.0, learning_rate=30.0, warmup=0.0,
        schedule="constant", weight_decay=1.2e-6, clip=0.25, patience=None,
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
# Those presets whose pieces "SMOKE" has not.
SMOKES = {
    "large": dataclasses.replace(
        PRESETS["large"], embed=8, hidden=32, dtype="float32", epochs=3, batch=8,
        seq_len=16, learning_rate=2e-2, patience=None,
    ),
    "awd": dataclasses.replace(
        PRESETS["awd"], embed=8, hidden=24, last_hidden=8, layers=2, dtype="float32",
        epochs=6, batch=8, seq_len=16, learning_rate=10.0, averaging_patience=1,
        dropout=0.1, layer_dropout=0.0, input_dropout=0.0, embedding_dropout=0.02,
        weight_drop=0.1, activation_penalty=0.1, temporal_penalty=0.1,
    ),
}  # fmt: skip
