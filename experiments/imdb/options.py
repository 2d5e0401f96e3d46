"""The command-line options of `experiments.imdb`, and the data they select."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.harness.arguments import default_is, several
from experiments.harness.options import CommonOptions
from experiments.harness.validation import PORT
from experiments.imdb import datasets
from experiments.imdb.datasets import Reviews, load_imdb
from experiments.imdb.encoder import SHARED
from experiments.imdb.finetuning import BEST, Finetuning
from experiments.imdb.model import SMOKE, Settings

# Settings whose defaults depend on the data, or on the file of --vectors.
FOLLOWING = ("embed", "epochs", "buckets", "linear")


@dataclass(frozen=True, kw_only=True)
class CsvOptions:
    """Files of one's own to read instead of IMDB."""

    csv: Annotated[Path | None, default_is("IMDB")] = None
    """Train on your own texts: a UTF-8 CSV file with a header.
    It needs a column of texts and one of labels.
    Labels are words or numbers, two or more different ones."""
    test_csv: Annotated[Path | None, default_is("a tenth of --csv")] = None
    """Test on this file."""
    text_column: Annotated[
        str | None, default_is("text, review, sentence, comment or content")
    ] = None
    """Name of the column with the texts."""
    label_column: Annotated[
        str | None, default_is("label, sentiment, class, category or target")
    ] = None
    """Name of the column with the labels."""


@dataclass(frozen=True)
class Options(CommonOptions, CsvOptions):
    """The options of the command line."""

    workdir: Path = Path("runs/imdb")
    preset: Literal["quick", "best"] = "quick"
    """Settings to start from; other options change them.
    quick: an LSTM of 64 units in each direction, a minute or two on 2 cores.
    best: language models are trained on the texts first, and fine-tuned."""
    encoder: Annotated[
        tuple[Path, ...] | None, several(Path, "DIR"), default_is("none")
    ] = None
    """Fine-tune these language models, as --preset best does with its own.
    Directories of experiments.imdb.pretraining, or of a run with --preset best."""
    settings: Settings = field(default_factory=Settings)
    finetuning: Finetuning = field(default_factory=Finetuning)
    unlabelled: Annotated[Path | None, default_is("none")] = None
    """More texts for the word vectors, or with --preset best the language models.
    A CSV file, or one text per line."""
    vectors: Annotated[Path | None, default_is("none")] = None
    """Initialise the embeddings from a text file of GloVe or fastText (also .gz).
    --embed follows it. Words of other languages and topics are ignored."""
    predict: Annotated[
        tuple[str, ...] | None, several(str, "TEXT"), default_is("none")
    ] = None
    """Classify these texts with the trained model; - reads one per line from stdin.
    Prints label, probability and text, separated by tabs."""
    predict_csv: Annotated[Path | None, default_is("none")] = None
    """Classify the texts of a CSV file with the trained model.
    Writes the file again with columns for the label and each probability."""
    out: Annotated[Path | None, default_is("NAME.predicted.csv in the workdir")] = None
    """With --predict-csv: the file to write."""
    explain: Annotated[
        tuple[str, ...] | None, several(str, "TEXT"), default_is("none")
    ] = None
    """Write a page with the attribution of each word to the model's decision.
    At most 20 texts with 1,000 words each; - as with --predict."""
    html: Annotated[Path | None, default_is("explanation.html in the workdir")] = None
    """With --explain: the page to write."""

    export: Annotated[Path | None, default_is("none")] = None
    """Write the trained model to this new directory, for JAX without this library."""
    serve: bool = False
    """Serve a page that classifies what one types, and a JSON interface.
    Only this machine reaches it."""
    port: Annotated[int | None, default_is("any free one")] = None
    """With --serve: the port to listen on."""

    def check(self) -> None:
        """Check the settings, and that the options do not contradict each other.

        Raises:
            ValueError: an option is out of range or contradicts another; it is named.
        """
        self.settings.check()
        self.finetuning.check()
        self._check_finetuning()
        for name in ("predict", "explain"):
            if getattr(self, name) == ():
                raise ValueError(f"--{name} needs at least one text, or -")
        questions = {
            "--predict": self.predict,
            "--predict-csv": self.predict_csv,
            "--explain": self.explain,
            "--export": self.export,
            "--serve": self.serve,
        }
        given = [name for name, value in questions.items() if value]
        if len(given) > 1:
            raise ValueError(f"give either {given[0]} or {given[1]}, not both")
        if self.html and not self.explain:
            raise ValueError("--html needs --explain")
        if self.port is not None and not self.serve:
            raise ValueError("--port needs --serve")
        PORT.check(self, "port")
        if self.out and not self.predict_csv:
            raise ValueError("--out needs --predict-csv")
        if self.tensorboard and given:
            raise ValueError(
                f"--tensorboard needs a training: {given[0]} trains nothing"
            )
        self.check_lr_find()
        if self.lr_find and given:
            raise ValueError(f"give either --lr-find or {given[0]}, not both")
        if self.smoke and self.csv:
            raise ValueError("give either --smoke or --csv, not both")
        if self.vectors:
            self._check_vectors(given)
        if self.settings.multi_label is not None and not (self.csv or given):
            raise ValueError("--multi-label needs --csv")
        for name in ("test_csv", "unlabelled", "label_column"):
            if getattr(self, name) is not None and not self.csv:
                raise ValueError(f"--{name.replace('_', '-')} needs --csv")
        if self.unlabelled and not (self.finetunes or self.settings.pretrain):
            raise ValueError("give either --unlabelled or --no-pretrain, not both")
        if self.text_column is not None and not (self.csv or self.predict_csv):
            raise ValueError("--text-column needs --csv or --predict-csv")
        if self.smoke and given and not self.names_workdir:
            raise ValueError(
                f"{given[0]} needs a trained model, and --smoke keeps none: give the "
                "--workdir of one"
            )

    def _check_vectors(self, given: list[str]) -> None:
        if given:
            raise ValueError(f"--vectors needs a training: {given[0]} trains nothing")
        if self.smoke:
            raise ValueError("give either --smoke or --vectors, not both")
        if not self.settings.pretrain:
            raise ValueError("give either --vectors or --no-pretrain, not both")
        if self.unlabelled:
            raise ValueError(
                "give either --vectors or --unlabelled, not both: the unlabelled texts "
                "are for word vectors of their own"
            )

    def _check_finetuning(self) -> None:
        if self.encoder == ():
            raise ValueError("--encoder needs at least one directory")
        if self.finetuning != Finetuning() and not self.finetunes:
            changed = dataclasses.asdict(self.finetuning).items()
            usual = dataclasses.asdict(Finetuning())
            name = next(name for name, value in changed if value != usual[name])
            raise ValueError(
                f"--{name.replace('_', '-')} needs --preset best or --encoder"
            )
        if not self.finetunes:
            return
        others = {
            "--vectors": self.vectors,
            "--multi-label": self.settings.multi_label,
            "--lr-find": self.lr_find,
        }
        for name, value in others.items():
            if value:
                raise ValueError(f"{name} is not for --preset best and --encoder")
        if self.encoder and "bidirectional" in self.typed:
            raise ValueError(
                "--bidirectional is not for --encoder: give it one language model, or "
                "one of each direction"
            )
        for name in ("embed_rate", "pretrain"):
            if name in self.typed:
                raise ValueError(
                    f"--{name.replace('_', '-')} is not for --preset best and --encoder"
                )
        for name in (*SHARED, "vocab") if not self.smoke else ():
            if name in self.typed:
                raise ValueError(
                    f"--{name} is that of the language models: train them with "
                    f"`python -m experiments.imdb.pretraining --{name} ...` and give "
                    "their --workdir as --encoder"
                )

    @property
    def finetunes(self) -> bool:
        """Whether the training starts from language models."""
        return self.preset == "best" or self.encoder is not None

    @property
    def uses_trained_model(self) -> bool:
        """Whether the options ask for something that trains no model."""
        questions = (self.predict, self.predict_csv, self.explain)
        return bool(any(questions) or self.export or self.serve)

    @property
    def effective_settings(self) -> Settings:
        """The settings to train with."""
        if self.smoke:
            return self.smoke_settings(SMOKE, self.settings)
        return self.settings


def defaults(arguments: Sequence[str]) -> Options:
    """Return the default options, with the settings of the preset in the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    parser.add_argument("--encoder", nargs="?", const="")
    given, _ = parser.parse_known_args(arguments)
    finetunes = given.preset == "best" or given.encoder is not None
    return Options(settings=BEST if finetunes else Settings())


def load(options: Options) -> Reviews:
    """The data set that the options select."""
    if options.smoke:
        return datasets.generate(seed=options.settings.seed)
    if options.csv:
        return datasets.read_csv(
            options.csv,
            test=options.test_csv,
            unlabelled=options.unlabelled,
            text_column=options.text_column,
            label_column=options.label_column,
            separator=options.settings.multi_label,
            seed=options.settings.seed,
        )
    return load_imdb(options.data_dir, options.download_dir)


def explicit_settings(options: Options) -> dict[str, Any]:
    """The entries of a run's settings.json that the options give explicitly."""
    if options.smoke:  # it gives all others
        return {"cell": options.settings.cell} if "cell" in options.typed else {}
    entries: dict[str, Any] = {}
    if options.csv:
        entries["reviews"] = load(options).fingerprint
    if options.finetunes:  # the encoders decide the others, which are not read here
        every = dataclasses.asdict(options.settings)
        every |= dataclasses.asdict(options.finetuning)
        return entries | {k: v for k, v in every.items() if k in options.typed}
    if options.settings != Settings():
        entries |= dataclasses.asdict(options.settings)
        for name, value in dataclasses.asdict(Settings()).items():
            # The data and vectors are not read for this.
            if name in FOLLOWING and entries[name] == value:
                del entries[name]
    return entries
