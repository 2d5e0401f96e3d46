"""The command line of `experiments.charlm`."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.charlm import datasets
from experiments.charlm.config import PRESETS, SMOKE, SMOKES, Settings
from experiments.charlm.datasets import Text
from experiments.charlm.dynamic import DynamicEvaluation
from experiments.charlm.inference import Analysis, Sampling
from experiments.charlm.units import BYTES, CHARACTERS, WORDS, Units
from experiments.harness.arguments import default_is, several
from experiments.harness.options import CommonOptions
from experiments.harness.validation import PORT, SHARE_BELOW_HALF, VOCABULARY
from experiments.harness.workdir import WorkDir

SMOKE_CHARACTERS, SMOKE_WORDS = 4_000, 16_000  # characters of the generated texts
SHORTENED = ("batch", "seq_len")  # settings that a short text makes smaller


@dataclass(frozen=True)
class Options(CommonOptions):
    """The options of the command line."""

    workdir: Path = Path("runs/charlm")
    devices: Annotated[int | None, default_is("the most that divide the batch")] = None
    preset: Literal["quick", "best", "large", "awd", "chapter"] = "quick"
    """Settings to start from; other options change them.
    quick: a GRU of 256 units, about a minute on 2 cores.
    best: an LSTM of 2 x 768 units, about an hour on one core.
    large: an LSTM of 2 x 1,024 units, for texts of 5 to 100 MB; hours.
    awd: the AWD-LSTM of 1,150, 1,150 and 400 units, of words; days without a GPU.
    chapter: an LSTM of 512 units, from a textbook; give its text with --text."""
    text: Annotated[
        tuple[Path, ...] | None,
        several(Path, "PATH"),
        default_is("tiny shakespeare"),
    ] = None
    """Your own text: UTF-8 files, or folders of them, concatenated."""
    validation: Annotated[Path | None, default_is("the last tenth of the text")] = None
    """With --text: another file or folder to validate on, as of a published split."""
    test: Annotated[Path | None, default_is("none")] = None
    """With --text: another file or folder to test the best epoch on, at the end."""
    test_share: float = 0.0
    """Share of the text, its end, to test the best epoch on, at the end.
    As much before it validates."""
    bytes: bool = False
    """Model bytes instead of characters; files may then be of any kind."""
    words: bool = False
    """Model words instead of characters: all between white space, and line ends.
    Penn Treebank and WikiText are published like that.
    In other texts put spaces before punctuation first."""
    vocabulary_size: Annotated[int | None, default_is("all")] = None
    """With --words: the most frequent words to tell apart, <unk> and <eos> included.
    Words that occur once are <unk>, too, unless the text itself has <unk>."""
    sample: bool = False
    """Generate text with the trained model; without one, train it first."""
    export: Annotated[Path | None, default_is("none")] = None
    """Write the trained model to this new directory, for JAX without this library."""
    serve: bool = False
    """Serve a page to write with the trained model, and a JSON interface.
    Only this machine reaches it."""
    port: Annotated[int | None, default_is("any free one")] = None
    """With --serve: the port to listen on."""
    unknown: Literal["error", "skip"] = "error"
    """What to do with characters outside the trained model's vocabulary.
    Words outside it are read as <unk>, or skipped."""
    settings: Settings = field(default_factory=Settings)
    sampling: Sampling = field(default_factory=Sampling)
    analysis: Analysis = field(default_factory=Analysis)
    dynamic: DynamicEvaluation = field(default_factory=DynamicEvaluation)

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            ValueError: they do not; the option is named.
        """
        self.settings.check()
        self.analysis.check()
        self.dynamic.check()
        if self.dynamic.dynamic_evaluation and (
            (self.uses_trained_model and self.analysis.score is None) or self.sample
        ):
            raise ValueError("--dynamic-evaluation needs --score or a training")
        if self.text == ():
            raise ValueError("--text needs at least one file or folder")
        if self.smoke and self.text:
            raise ValueError("give either --smoke or --text, not both")
        for name in ("validation", "test"):
            if getattr(self, name) and not self.text:
                raise ValueError(f"--{name} needs --text, the part to train on")
            if getattr(self, name) and self.test_share:
                raise ValueError(f"give either --{name} or --test-share, not both")
        SHARE_BELOW_HALF.check(self, "test_share")
        if self.bytes and self.units is WORDS:
            given = "--words," if self.words else "--preset awd, which is of words,"
            raise ValueError(f"give either --bytes or {given} not both")
        if self.vocabulary_size is not None and self.units is not WORDS:
            raise ValueError("--vocabulary-size needs --words")
        VOCABULARY.check(self, "vocabulary_size")
        if self.sampling != Sampling() and not self.sample:
            raise ValueError(
                "--prompt, --length, --temperature and the like need --sample"
            )
        if self.sample and self.analysis.requested:
            raise ValueError("give either --sample or --score and --neurons")
        for name in ("export", "serve"):
            others = (self.sample, self.analysis.requested, self.export and self.serve)
            if getattr(self, name) and any(others):
                raise ValueError(
                    f"--{name} goes alone: without --sample, --score, --neurons and "
                    f"--{'serve' if name == 'export' else 'export'}"
                )
        if self.port is not None and not self.serve:
            raise ValueError("--port needs --serve")
        PORT.check(self, "port")
        if self.unknown == "skip" and not (self.sample or self.analysis.requested):
            raise ValueError("--unknown skip needs --sample, --score or --neurons")
        self.check_lr_find()
        if self.lr_find and (self.sample or self.uses_trained_model):
            raise ValueError(
                "--lr-find goes alone: without --sample, --score, --neurons, --export "
                "and --serve"
            )
        if self.tensorboard and self.uses_trained_model:
            raise ValueError(
                "--tensorboard needs a training: --score, --neurons, --export and "
                "--serve do none"
            )
        if self.smoke and self.uses_trained_model and not self.names_workdir:
            raise ValueError(
                "--score, --neurons, --export and --serve need a trained model, and "
                "--smoke keeps none: give the --workdir of one"
            )

    @property
    def units(self) -> Units:
        """What is modelled."""
        if self.words or self.preset == "awd":
            return WORDS
        return BYTES if self.bytes else CHARACTERS

    @property
    def uses_trained_model(self) -> bool:
        """Whether the options ask for something that trains no model."""
        return self.analysis.requested or self.export is not None or self.serve

    @property
    def effective_settings(self) -> Settings:
        """The settings to train with; a short text makes batch and seq_len smaller."""
        if self.smoke:
            smoke = SMOKES.get(self.preset, SMOKE)
            return self.smoke_settings(smoke, self.settings)
        return self.settings


def defaults(arguments: Sequence[str]) -> Options:
    """Return the default options, with the settings of the preset in the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    preset = parser.parse_known_args(arguments)[0].preset
    # An unknown name is refused when all options are parsed.
    return Options(settings=PRESETS.get(preset, PRESETS["quick"]))


def load(options: Options) -> Text:
    """Return the text that the options ask for."""
    if options.smoke:
        spaced = options.units is WORDS
        count = SMOKE_WORDS if spaced else SMOKE_CHARACTERS
        seed = options.settings.seed
        return _split(datasets.generate(count, seed=seed, spaced=spaced), options)
    if options.text:
        text = datasets.read_files(options.text, by_byte=options.units.by_byte)
    else:
        text = datasets.load_shakespeare(
            options.data_dir, options.download_dir, by_byte=options.units.by_byte
        )
    return _split(text, options)


def _split(text: Text, options: Options) -> Text:
    """Return the text with the parts that the options name."""
    parts = {
        name: datasets.read_part(path, f"--{name}", by_byte=options.units.by_byte)
        for name in ("validation", "test")
        if (path := getattr(options, name)) is not None
    }
    return dataclasses.replace(text, **parts, test_share=options.test_share)


def load_training_part(options: Options, workdir: WorkDir) -> str:
    """Return the part of a text that the run in a work directory is trained on.

    Raises:
        ValueError: it is not the text that the options name.
    """
    saved = workdir.settings_as(SavedText)
    options = dataclasses.replace(
        options,
        bytes=saved.bytes,
        words=saved.words,
        preset="quick",
        validation=None,
        test=None,
    )
    text = load(options)
    if text.identity["text"] != saved.text:
        raise ValueError(
            "--dynamic-evaluation needs the text that the model was trained on, for "
            f"statistics of its gradients: give it with --text ({saved.dataset})"
        )
    if saved.validation is not None:
        return text.content
    return dataclasses.replace(text, test_share=saved.test_share).split()[0]


@dataclass(frozen=True)
class SavedText:
    """What the settings of a run say of its text."""

    dataset: str
    text: str
    validation: str | None
    test_share: float
    bytes: bool
    words: bool


def explicit_settings(options: Options) -> dict[str, Any]:
    """Return what the command line says of a trained model's settings and text.

    Not the seed, which is that of sampling, nor what a short text makes smaller.
    """
    if options.smoke:  # which decides everything else
        return {"cell": options.settings.cell} if "cell" in options.typed else {}
    entries: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("bytes", "vocabulary_size")
        if getattr(options, name)
    }
    if options.units is WORDS:
        entries["words"] = True
    identity = load(options).identity if options.text else {}
    entries |= {name: part for name, part in identity.items() if part}
    if options.test_share:
        entries["test_share"] = options.test_share
    usual = dataclasses.asdict(Settings())
    for name, value in dataclasses.asdict(options.settings).items():
        by_preset = "preset" in options.typed and value != usual[name]
        # The choice of "auto" is the run's.
        if (name in options.typed or by_preset) and (name, value) != ("dtype", "auto"):
            entries[name] = value
    return {k: v for k, v in entries.items() if k not in (*SHORTENED, "seed")}


def continues(options: Options, workdir: WorkDir) -> bool:
    """Return whether training with these options would continue an unfinished run.

    This does not read the text: it compares only whether both are the user's own, and
    have the same parts.
    """
    found = workdir.settings or {}
    wanted = dataclasses.asdict(options.effective_settings)
    names = ("bytes", "vocabulary_size", "test_share")
    wanted |= {name: getattr(options, name) for name in names}
    wanted["words"] = options.units is WORDS
    own = datasets.is_own(str(found.get("dataset")))
    parts = all(
        (found.get(name) is None) == (getattr(options, name) is None)
        for name in ("validation", "test")
    )
    return (
        workdir.results is None
        and own == bool(options.text)
        and parts
        and all(
            found.get(name) == value
            for name, value in wanted.items()
            if name not in SHORTENED and (name, value) != ("dtype", "auto")
        )
    )
