"""What every program of this folder does around its own work: arguments and endings.

Wrong input, and files that cannot be used, end with one line and exit code 2, Ctrl-C
with 130, a closed pipe quietly.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

Options = TypeVar("Options")


def run(
    main: Callable[[Options], None],
    options_type: type[Options],
    name: str,
    description: str | None,
    defaults: Callable[[Sequence[str]], Options] | None = None,
) -> int:
    """The exit code of `main(options)`, with the options of the command line.

    What it leaves open is as `options_type` says, or `defaults(arguments)`: one
    argument may be short for others.
    """
    try:
        try:
            options = tyro.cli(
                options_type,
                prog=f"python -m experiments.{name}",
                description=description,
                default=defaults(sys.argv[1:]) if defaults else options_type(),
            )
            # Orbax logs every save, and warns of choices that are not the user's.
            logging.getLogger("absl").setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module="orbax")
            main(options)
        finally:
            sys.stdout.flush()  # here a pipe's end is seen, of --help too
    except BrokenPipeError:
        # Python would complain again when it flushes the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(interrupt or "interrupted", file=sys.stderr)
        return 130
    return 0
