"""Files and directories that are removed however the program ends."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from experiments.harness import launch


@contextlib.contextmanager
def removed_at_exit(path: Path) -> Iterator[None]:
    """Remove the file or directory at `path` at the end of the block, if it is there.

    Also where a signal ends the program at once.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp())
    >>> with removed_at_exit(path):
    ...     path.exists()
    True
    >>> path.exists()
    False
    """

    def remove() -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    with launch.cleaned_up(remove):
        yield
