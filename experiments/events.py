"""Logs of a run for TensorBoard."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

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
