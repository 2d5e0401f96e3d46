"""The command-line options that both training programs have."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from experiments.harness.arguments import default_is
from experiments.harness.config import CommonSettings
from experiments.harness.distributed import Cluster
from experiments.harness.temporary import removed_at_exit

SCRATCH = "jaxrnn-smoke-"
Options = TypeVar("Options", bound="PlaceOptions")
Settings = TypeVar("Settings", bound=CommonSettings)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Where tensorflow-datasets keeps what it has."""

    data_dir: Annotated[Path | None, default_is("~/tensorflow_datasets")] = None
    """Where tensorflow-datasets keeps the prepared data set."""
    download_dir: Annotated[Path | None, default_is("DATA_DIR/downloads")] = None
    """The download cache of tensorflow-datasets, or the file in its folder manual.
    If neither is there, the file is downloaded."""


@dataclass(frozen=True)
class PlaceOptions(DatasetOptions):
    """Where runs read and write, and on which devices they compute.

    A program's own options are fields of a subclass, which sets the default `workdir`.
    """

    workdir: Path = Path("runs")
    """Directory of the run. The same command started again continues it."""
    devices: Annotated[int | None, default_is("all")] = None
    """Devices of each process; a CPU counts as one device per core."""
    smoke: bool = False
    """Try everything in seconds: tiny models on generated data."""

    @property
    def names_workdir(self) -> bool:
        """Whether the work directory is another than the program's default."""
        return self.workdir != type(self).workdir


@dataclass(frozen=True)
class CommonOptions(PlaceOptions):
    """The options of a program that trains one model."""

    smoke: bool = False
    """Try everything in seconds: a tiny model on generated data.
    Of the settings only --cell and --seed are yours."""
    tensorboard: bool = False
    """Also write TensorBoard logs, to the folder tensorboard of the work directory.
    To see them: pip install tensorboard, then tensorboard --logdir WORKDIR."""
    lr_find: bool = False
    """Learning-rate range test: up to 200 steps while the rate rises.
    Suggests a rate, and writes only learning_rates.png to the work directory."""
    cluster: Cluster = field(default_factory=Cluster)
    typed: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """The names of the fields that the command line gave."""

    def check_lr_find(self) -> None:
        """Check --lr-find against what all programs have.

        Raises:
            ValueError: an option contradicts it; it is named.
        """
        if self.lr_find and self.tensorboard:
            raise ValueError("give either --lr-find or --tensorboard, not both")
        if self.lr_find and {"learning_rate", "epochs", "patience"} & {*self.typed}:
            raise ValueError(
                "--lr-find has rates and steps of its own: leave --learning-rate, "
                "--epochs and --patience out"
            )

    def smoke_settings(self, smoke: Settings, given: Settings) -> Settings:
        """Return the settings of --smoke, with the seed and the cell of `given`.

        The cell only if the command line gave it.
        """
        cell = given.cell if "cell" in self.typed else smoke.cell
        return dataclasses.replace(smoke, seed=given.seed, cell=cell)


@contextlib.contextmanager
def scratch_if_smoke(options: Options) -> Iterator[Options]:
    """Yields the options, with --smoke and no --workdir those of a temporary directory.

    It is removed at the end of the block.

    >>> with scratch_if_smoke(CommonOptions(smoke=True)) as options:
    ...     options.workdir.is_dir(), options.names_workdir
    (True, True)
    >>> options.workdir.exists()
    False
    """
    if not options.smoke or options.names_workdir:
        yield options
        return
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
    with removed_at_exit(scratch):
        yield dataclasses.replace(options, workdir=scratch)


def is_temporary(workdir: Path) -> bool:
    """Return whether a work directory is one of `scratch_if_smoke`.

    >>> is_temporary(Path("runs/mine"))
    False
    """
    return workdir.name.startswith(SCRATCH)
