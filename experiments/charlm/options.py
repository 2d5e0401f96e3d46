"""The command line of `experiments.charlm`: its options, and what they ask for."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.charlm import datasets
from experiments.charlm.config import PRESETS, SMOKE, Settings
from experiments.charlm.datasets import Text
from experiments.charlm.inference import Drawing, Reading
from experiments.harness import cli
from experiments.harness.options import CommonOptions
from experiments.harness.workdir import WorkDir

SHORTENED = ("batch", "seq_len")  # settings, by a short text


@dataclass(frozen=True)
class Options(CommonOptions):
    """The options of the command line."""

    workdir: Path = Path("runs/charlm")
    devices: int | None = None
    """Devices of each process; a CPU counts as one device per core.
    Default: as many as divide the batch."""
    preset: Literal["quick", "best", "chapter"] = "quick"
    """Settings to start from, which other options change.
    quick: a GRU of 256, about a minute on 2 cores.
    best: an LSTM of 2 x 512, about an hour on one core.
    chapter: that of a book, an LSTM of 512, half an hour; give its text with --text."""
    settings: Settings = field(default_factory=Settings)
    text: Annotated[tuple[Path, ...] | None, cli.several(Path, "PATH")] = None
    """Your own text: UTF-8 files, or folders of them, one after the other.
    By default tiny shakespeare."""
    bytes: bool = False
    """Model bytes instead of characters: of any file."""
    sample: bool = False
    """Write with the trained model; where there is none, train it first."""
    drawing: Drawing = field(default_factory=Drawing)
    reading: Reading = field(default_factory=Reading)
    unknown: Literal["error", "skip"] = "error"
    """What to do with characters that the trained model has never seen."""

    def check(self) -> None:
        """Whether they make sense together.

        Raises:
            ValueError: they do not; the option is named.
        """
        self.settings.check()
        self.reading.check()
        if self.text == ():
            raise ValueError("--text needs at least one file or folder")
        if self.smoke and self.text:
            raise ValueError("give either --smoke or --text, not both")
        if self.drawing != Drawing() and not self.sample:
            raise ValueError(
                "--prompt, --length, --temperature and the like need --sample"
            )
        if self.sample and self.reading.requested:
            raise ValueError("give either --sample or --score and --neurons")
        if self.unknown == "skip" and not (self.sample or self.reading.requested):
            raise ValueError("--unknown skip needs --sample, --score or --neurons")
        if self.tensorboard and self.reading.requested:
            raise ValueError(
                "--tensorboard needs a training: --score and --neurons do none"
            )
        if self.smoke and self.reading.requested and not self.names_workdir:
            raise ValueError(
                "--score and --neurons need a trained model, and --smoke keeps none: "
                "give the --workdir of one"
            )

    @property
    def effective_settings(self) -> Settings:
        """The settings to train with; a short text lessens them."""
        if self.smoke:
            return dataclasses.replace(SMOKE, seed=self.settings.seed)
        return self.settings


def defaults(arguments: Sequence[str]) -> Options:
    """The options with the settings of the preset that the arguments name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    preset = parser.parse_known_args(arguments)[0].preset
    # A name that there is not is refused where all the options are read.
    return Options(settings=PRESETS.get(preset, PRESETS["quick"]))


def load(options: Options) -> Text:
    """The text that the options ask for."""
    if options.smoke:
        return datasets.generate(seed=options.settings.seed)
    if options.text:
        return datasets.read_files(options.text, by_byte=options.bytes)
    return datasets.load_shakespeare(
        options.data_dir, options.download_dir, by_byte=options.bytes
    )


def explicit_settings(options: Options) -> dict[str, Any]:
    """The entries of a run's identity that the options decide, not left open."""
    if options.smoke:  # which decides everything
        return {}
    entries: dict[str, Any] = {"bytes": True} if options.bytes else {}
    if options.text:
        entries["text"] = load(options).fingerprint
    if dataclasses.replace(options.settings, seed=0) != Settings():
        entries |= dataclasses.asdict(options.settings)
    # The seed is that of the drawing.
    return {k: v for k, v in entries.items() if k not in (*SHORTENED, "seed")}


def continues(options: Options, workdir: WorkDir) -> bool:
    """Whether to train with these options may go on with a run that is not finished.
    It does not read their text: only whether it is one's own or not."""
    found = workdir.settings or {}
    wanted = dataclasses.asdict(options.effective_settings) | {"bytes": options.bytes}
    own = datasets.is_own(str(found.get("dataset")))
    return (
        workdir.results is None
        and own == bool(options.text)
        and all(found.get(k) == v for k, v in wanted.items() if k not in SHORTENED)
    )
