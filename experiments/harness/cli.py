"""What every program of this folder does around its own work: arguments and endings.

Wrong input, and files that cannot be used, end with one line and exit code 2, Ctrl-C
and SIGTERM with 130, a closed pipe quietly. A warning is one line, too.
"""

import dataclasses
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from jax.errors import JaxRuntimeError
from tyro.constructors import PrimitiveConstructorSpec

from experiments.harness import distributed

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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    _open_streams()
    try:
        try:
            options = tyro.cli(
                options_type,
                prog=f"python -m experiments.{name}",
                description=description,
                default=defaults(sys.argv[1:]) if defaults else options_type(),
                # Options of options are a group in the help, not part of their names.
                config=(tyro.conf.OmitArgPrefixes,),
            )
            # Orbax logs every save, what it raises as well, and warns of choices that
            # are not the user's.
            logging.getLogger("absl").setLevel(logging.CRITICAL)
            warnings.filterwarnings("ignore", module="orbax")
            warnings.showwarning = _show_in_one_line
            main(_at_home(options))
        finally:
            _flush()  # here a pipe's end is seen, of --help too
    except BrokenPipeError:
        # Python would complain again when it flushes the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        _print_line(
            f"error: not enough memory: {str(error) or 'the system gives no more'}"
        )
        return distributed.leave(2)
    except (OSError, ValueError, JaxRuntimeError) as error:
        _print_line(f"error: {distributed.explain(error)}")
        return distributed.leave(2)
    except KeyboardInterrupt as interrupt:
        _print_line(str(interrupt) or "interrupted")
        return 130 if interrupt.args else distributed.leave(130)
    return 0


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write to standard output: {error.strerror}: give it another place"
        ) from error


def _at_home(value: Any) -> Any:
    """The options with the `~` of each path as a shell has it."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = [field.name for field in dataclasses.fields(value)]
    return dataclasses.replace(
        value, **{name: _at_home(getattr(value, name)) for name in names}
    )


def _open_streams() -> None:
    """Python has no file for a standard stream that is closed: then it is empty."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def several(make: Callable[[str], Any], word: str) -> PrimitiveConstructorSpec[Any]:
    """How an option becomes a tuple: `make` makes one of each of its words, `word` in
    the help. It is None if it is not given: given without a word, it is empty.

    >>> several(int, "N").instance_from_str(["1", "2"])
    (1, 2)
    """
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{word} [{word} ...]",
        instance_from_str=lambda words: tuple(map(make, words)),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: list(map(str, value or ["None"])),
    )


def _show_in_one_line(message: Warning | str, *_: object, **__: object) -> None:
    _print_line(f"warning: {message}")


def _print_line(text: str) -> None:
    """On standard error; a file may have any name, line breaks in it too."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    print(line, file=sys.stderr)
