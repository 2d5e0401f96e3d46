"""What every program does around its own work: the command line and exit codes.

Wrong input and unusable files end with one line and exit code 2, Ctrl-C and SIGTERM
with 130, a closed pipe quietly with 141. A warning is one line, too.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import sys
import textwrap
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from jax.errors import JaxRuntimeError
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
)

from experiments.harness import distributed

Options = TypeVar("Options")


def run(
    main: Callable[[Options], None],
    options_type: type[Options],
    name: str,
    description: str | None,
    defaults: Callable[[Sequence[str]], Options] | None = None,
) -> int:
    """Parse the command line, call `main(options)` and return the exit code.

    Options that are not given have the values of `defaults(arguments)`, by default
    those of `options_type()`: one argument may change the defaults of others. If the
    options have a field `typed`, it gets the names of the fields that were given.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # not started by `launch`
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    _open_streams()
    arguments = sys.argv[1:]
    try:
        try:
            _refuse_empty_paths(options_type, arguments)
            default = defaults(arguments) if defaults else options_type()
            options = tyro.cli(
                options_type,
                prog=f"python -m experiments.{name}",
                description=_wrap(description or ""),
                default=default,
                registry=_NUMBERS,
                config=(
                    # Options of options are a group in the help, not part of a name.
                    tyro.conf.OmitArgPrefixes,
                    # --smoke alone, without a --no-smoke.
                    tyro.conf.FlagCreatePairsOff,
                ),
            )
            if hasattr(options, "typed"):
                typed = tuple(_typed(options_type, arguments))
                options = dataclasses.replace(options, typed=typed)  # pyright: ignore[reportArgumentType]
            # Orbax logs every save, what it raises as well, and warns of choices that
            # are not the user's.
            logging.getLogger("absl").setLevel(logging.CRITICAL)
            warnings.filterwarnings("ignore", module="orbax")
            warnings.showwarning = _show_in_one_line
            main(_expand_user(options))
        finally:
            _flush()  # here a pipe's end is seen, of --help too
    except BrokenPipeError:
        # Python would complain again when it flushes the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        reason = str(error) or "the system gives no more"
        _print_line(f"error: not enough memory: {reason}")
        return distributed.leave(2)
    except (OSError, ValueError, JaxRuntimeError) as error:
        _print_line(f"error: {_explain(error)}")
        return distributed.leave(2)
    except KeyboardInterrupt as interrupt:
        _print_line(str(interrupt) or "interrupted")
        return 130 if interrupt.args else distributed.leave(130)
    return 0


def _wrap(description: str) -> str:
    r"""Return the description with its paragraphs as wide as the terminal.

    tyro makes one line of a paragraph, but for lines that begin with no letter.

    >>> print(_wrap("What it\ndoes.\n\n    a command"))
     What it does.
    <BLANKLINE>
        a command
    """
    width = max(min(shutil.get_terminal_size().columns, 88) - 1, 20)
    return "\n\n".join(
        paragraph
        if paragraph.startswith((" ", "- "))
        else textwrap.fill(paragraph, width, initial_indent=" ", subsequent_indent=" ")
        for paragraph in description.strip("\n").split("\n\n")
    )


def _explain(error: Exception) -> str:
    """Return the message of an error with the path or the remedy that it lacks."""
    said = distributed.explain(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if "RESOURCE_EXHAUSTED" in said or "Out of memory" in said:
        return (
            f"not enough memory for a model or a batch of this size ({said}): lower "
            "--hidden, --embed, --layers or --batch"
        )
    return said


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write to standard output: {error.strerror}: redirect it elsewhere"
        ) from error


def _expand_user(value: Any) -> Any:
    """Return the options with the `~` of each path expanded, as a shell does it."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    if isinstance(value, tuple):
        return tuple(map(_expand_user, value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = [field.name for field in dataclasses.fields(value)]
    return dataclasses.replace(
        value, **{name: _expand_user(getattr(value, name)) for name in names}
    )


def _fields(options_type: type) -> Iterator[tuple[str, Any]]:
    """Yield name and type of each option, those of nested dataclasses too."""
    for name, hint in typing.get_type_hints(options_type).items():
        if dataclasses.is_dataclass(hint):
            yield from _fields(typing.cast(type, hint))
        else:
            yield name, hint


def _words(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the field that each argument belongs to, and its value if it has one.

    >>> list(_words(["--seq-len", "8", "--bytes", "--text=a", "b"]))
    [('seq_len', None), ('seq_len', '8'), ('bytes', None), ('text', 'a'), ('text', 'b')]
    """
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument[2:].partition("=")
            name = option.replace("-", "_")
            yield name, value if equals else None
        else:
            yield name, argument


def _typed(options_type: type, arguments: Sequence[str]) -> list[str]:
    """Return the fields that the arguments set."""
    given = {name for name, _ in _words(arguments)}
    return [k for k, _ in _fields(options_type) if k in given or f"no_{k}" in given]


def _refuse_empty_paths(options_type: type, arguments: Sequence[str]) -> None:
    """Refuse `--workdir ""`, often an unset shell variable: `Path("")` is `Path(".")`.

    Raises:
        ValueError: a path is empty; the option is named.
    """
    paths = {name for name, hint in _fields(options_type) if Path in _parts(hint)}
    for name, value in _words(arguments):
        if name in paths and value == "":
            raise ValueError(f"--{name.replace('_', '-')} is empty: name a path")


def _parts(hint: Any) -> set[Any]:
    """Return the types that a type is made of.

    >>> _parts(tuple[Path, ...] | None) == {Path, ..., type(None)}
    True
    """
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (types.UnionType, typing.Union, tuple):
        return {hint}
    return set().union(*map(_parts, get_args(hint)))


def _open_streams() -> None:
    """Open the standard streams that are closed, as empty ones: Python has none."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


_NUMBERS = ConstructorRegistry()


@_NUMBERS.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Return how tyro reads a number: its own error message is Python's."""
    if info.type not in (int, float):
        return None
    kind = "an integer" if info.type is int else "a number"

    def parse(words: list[str]) -> Any:
        try:
            return info.type(words[0])
        except ValueError as error:
            raise ValueError(f"it must be {kind}, got {words[0]!r}") from error

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=info.type.__name__.upper(),
        instance_from_str=parse,
        is_instance=lambda value: type(value) in (int, info.type),
        str_from_instance=lambda value: [str(value)],
    )


def _show_in_one_line(message: Warning | str, *_: object, **__: object) -> None:
    _print_line(f"warning: {message}")


def _print_line(text: str) -> None:
    """Print to standard error; a file may have any name, line breaks in it too."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    with contextlib.suppress(OSError):  # Ctrl-C ends who reads a pipe, too
        print(line, file=sys.stderr)
