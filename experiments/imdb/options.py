"""The command line of `experiments.imdb`: its options, and what they ask for."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from experiments.harness import cli
from experiments.harness.options import CommonOptions
from experiments.imdb import datasets
from experiments.imdb.datasets import Reviews, load_imdb
from experiments.imdb.model import SMOKE, Settings


@dataclass(frozen=True)
class Options(CommonOptions):
    """The options of the command line."""

    workdir: Path = Path("runs/imdb")
    settings: Settings = field(default_factory=Settings)
    csv: Path | None = None
    """Your own reviews: a UTF-8 file with the columns text and label."""
    predict: Annotated[tuple[str, ...] | None, cli.several(str, "TEXT")] = None
    """Classify these texts with the trained model; - reads one per line from stdin."""
    explain: Annotated[tuple[str, ...] | None, cli.several(str, "TEXT")] = None
    """Show on a page how each word of these texts moves the trained model.
    At most 20 with 1,000 words each; - as with --predict."""
    html: Path | None = None
    """With --explain: the page to write, default explanation.html."""

    def check(self) -> None:
        """Whether they make sense together.

        Raises:
            ValueError: they do not; the option is named.
        """
        self.settings.check()
        for name in ("predict", "explain"):
            if getattr(self, name) == ():
                raise ValueError(f"--{name} needs at least one text, or -")
        if self.predict and self.explain:
            raise ValueError("give either --predict or --explain, not both")
        if self.html and not self.explain:
            raise ValueError("--html needs --explain")
        if self.tensorboard and self.asks:
            raise ValueError(
                "--tensorboard needs a training: --predict and --explain do none"
            )
        if self.smoke and self.csv:
            raise ValueError("give either --smoke or --csv, not both")
        if self.smoke and self.asks and not self.names_workdir:
            raise ValueError(
                "--predict and --explain need a trained model, and --smoke keeps none: "
                "give the --workdir of one"
            )

    @property
    def asks(self) -> bool:
        """Whether there is a text for the trained model."""
        return bool(self.predict or self.explain)

    @property
    def effective_settings(self) -> Settings:
        """The settings to train with."""
        if self.smoke:
            return dataclasses.replace(SMOKE, seed=self.settings.seed)
        return self.settings


def load(options: Options) -> Reviews:
    """The reviews that the options ask for."""
    if options.smoke:
        return datasets.generate(seed=options.settings.seed)
    if options.csv:
        return datasets.read_csv(options.csv, seed=options.settings.seed)
    return load_imdb(options.data_dir, options.download_dir)


def explicit_settings(options: Options) -> dict[str, Any]:
    """The entries of a run's identity that the options decide, not left open."""
    if options.smoke:  # which decides everything
        return {}
    entries: dict[str, Any] = {}
    if options.csv:
        entries["reviews"] = load(options).fingerprint
    if options.settings != Settings():
        entries |= dataclasses.asdict(options.settings)
    return entries
