"""What is shown of a run: progress bar or lines, table of epochs, TensorBoard logs."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

NARROWEST = 7  # characters of a column
FIRST_LINE, LINE_EVERY = 10, 30  # seconds between lines where there is no terminal


def table_header(line: dict[str, float]) -> str:
    r"""Return the two lines above the rows of such lines.

    >>> line = {"epoch": 1, "train_loss": 0.71234, "words_per_second": 123456.7}
    >>> print(table_header(line) + "\n" + table_row(line))
               train       words
      epoch     loss  per second
          1   0.7123     123,457
    """
    tops, bottoms = zip(*map(_title, _shown(line)), strict=True)
    return f"{_align(line, tops)}\n{_align(line, bottoms)}"


def table_row(line: dict[str, float]) -> str:
    """Return the values of a line, in the columns of `table_header`."""
    return _align(line, [_spell(name, line[name]) for name in _shown(line)])


def _shown(line: dict[str, float]) -> list[str]:
    return [name for name in line if _spell(name, line[name])]


def _spell(name: str, value: float) -> str:
    if name in ("epoch", "seconds") or name.endswith("per_second"):
        return f"{value:,.0f}"
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    if name.endswith(("loss", "f1")) or "nats" in name:
        return f"{value:.4f}"
    if name.endswith("perplexity"):
        return f"{value:,.2f}"
    return ""  # the rest is in metrics.jsonl only


def _title(name: str) -> tuple[str, str]:
    top, _, bottom = name.partition("_")
    return (top, bottom.replace("_", " ")) if bottom else ("", top)


def _align(line: dict[str, float], cells) -> str:
    widths = [max(NARROWEST, *map(len, _title(name))) for name in _shown(line)]
    aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join(aligned)


def describe_run(
    dataset: str, parts: Mapping[str, int], units: str, parameters: int, mesh: Mesh
) -> str:
    """Return the line at the start of a training: data, split, model size, devices.

    >>> from jaxrnn.placement import data_mesh
    >>> mesh = data_mesh(1)
    >>> describe_run("mine", {"train": 90_000, "validate": 10}, "words", 1234, mesh)
    'mine: 90,000 words to train, 10 to validate; 1,234 parameters; 1 cpu device'
    """
    sizes = [f"{count:,}" for count in parts.values()]
    sizes[0] += f" {units}"
    split = ", ".join(f"{n} to {part}" for n, part in zip(sizes, parts, strict=True))
    platform = mesh.devices.flat[0].platform
    devices = f"{mesh.size} {platform} device{'s' if mesh.size > 1 else ''}"
    return f"{dataset}: {split}; {parameters:,} parameters; {devices}"


@contextlib.contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show progress on standard error: a bar on a terminal, elsewhere lines.

    Yields a function to call with what is completed and, if it changed, the
    description. Elsewhere than on a terminal a line with the expected time left comes
    after some seconds, then one each half minute.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        redirect_stdout=sys.stdout.isatty(),  # else rich would take it from its file
    ) as bar:
        task = bar.add_task(description, total=total)

        def advance(completed: int, description: str | None = None) -> None:
            bar.update(task, completed=completed, description=description)

        yield advance


def _lines(description: str, total: int) -> Callable[..., None]:
    """Return an `advance` that prints a line now and then."""
    next_line = time.monotonic() + FIRST_LINE
    begun_at: int | None = None  # a run that goes on does not begin at zero
    first: tuple[int, float] | None = None  # what was completed when, with compilation

    def advance(completed: int, changed: str | None = None) -> None:
        nonlocal description, next_line, begun_at, first
        description = changed or description
        now = time.monotonic()
        begun_at = completed if begun_at is None else begun_at
        if first is None and completed > begun_at:
            first = completed, now
        if first is None or completed == first[0] or now < next_line:
            return
        if jax.process_index() > 0:
            return
        next_line = now + LINE_EVERY
        left = (now - first[1]) / (completed - first[0]) * (total - completed)
        # Where nobody reads it any more, what is done still counts.
        with contextlib.suppress(OSError):
            print(
                f"{description}  {completed:,}/{total:,}  about {_minutes(left)} left",
                file=sys.stderr,
                flush=True,
            )

    return advance


def _minutes(seconds: float) -> str:
    """Return a time in words.

    >>> _minutes(29), _minutes(95), _minutes(2 * 3600)
    ('1 minute', '2 minutes', '120 minutes')
    """
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} minute{'s' if minutes > 1 else ''}"


Log = Callable[[str, int, Mapping[str, float]], None]


@contextlib.contextmanager
def events(path: Path | None, step: int) -> Iterator[Log]:
    """Write TensorBoard logs: yields a function of a group, a step and values.

    They become scalars in `path` with the name `group/name`. Without a path nothing is
    written, and by the first process only. What TensorBoard has of later steps than
    `step` is superseded: it is from a process that ended before it saved a checkpoint.
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
