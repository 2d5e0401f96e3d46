"""What a person sees of a run: a progress bar, a table of epochs, TensorBoard logs."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

NARROWEST = 7  # characters of a column


def table_header(line: dict[str, float]) -> str:
    """The two lines above the rows of lines like this one.

    >>> line = {"epoch": 1, "train_loss": 0.71234, "words_per_second": 123456.7}
    >>> print(table_header(line) + "\\n" + table_row(line))
               train       words
      epoch     loss  per second
          1   0.7123     123,457
    """
    tops, bottoms = zip(*map(_title, _shown(line)), strict=True)
    return f"{_align(line, tops)}\n{_align(line, bottoms)}"


def table_row(line: dict[str, float]) -> str:
    """The values of a line."""
    return _align(line, [_spell(name, line[name]) for name in _shown(line)])


def _shown(line: dict[str, float]) -> list[str]:
    return [name for name in line if _spell(name, line[name])]


def _spell(name: str, value: float) -> str:
    if name in ("epoch", "seconds") or name.endswith("per_second"):
        return f"{value:,.0f}"
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    if name.endswith("loss") or "nats" in name:
        return f"{value:.4f}"
    return ""  # there is more than one can read in metrics.jsonl


def _title(name: str) -> tuple[str, str]:
    top, _, bottom = name.partition("_")
    return (top, bottom.replace("_", " ")) if bottom else ("", top)


def _align(line: dict[str, float], cells) -> str:
    widths = [max(NARROWEST, *map(len, _title(name))) for name in _shown(line)]
    aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join(aligned)


@contextlib.contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with the time left; on standard error, and on a terminal only. Gives a
    function to call with what is completed and, if it changed, the description."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # else rich would take it from its file
    ) as bar:
        task = bar.add_task(description, total=total)

        def advance(completed: int, description: str | None = None) -> None:
            bar.update(task, completed=completed, description=description)

        yield advance


Log = Callable[[str, int, Mapping[str, float]], None]


@contextlib.contextmanager
def events(path: Path | None, step: int) -> Iterator[Log]:
    """Gives a function to call with a group, a step and values, which become scalars
    in `path` with the name `group/name`. Without a path it does nothing, and in all
    processes but the first.

    What TensorBoard has of later steps than `step` is superseded: of a process that was
    ended before it could save a checkpoint.
    """
    if path is None or jax.process_index() > 0:
        yield lambda group, step, values: None
        return
    from tensorboardX import SummaryWriter  # takes a second, and is seldom needed

    # Its files are named by the second, which two short runs may share.
    suffix = f".{step}"
    with SummaryWriter(
        str(path), purge_step=step + 1, filename_suffix=suffix
    ) as writer:

        def log(group: str, step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(f"{group}/{name}", value, step)

        yield log
