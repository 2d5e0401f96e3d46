"""How a program ends: exit codes, one line for wrong input, quiet closed pipes."""

import io
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro
from jax.errors import JaxRuntimeError

from experiments.harness import cli


@dataclass(frozen=True)
class Options:
    """Nothing but a name."""

    name: str = "nobody"
    """Whom to greet."""


@pytest.fixture
def run(monkeypatch, capsys):
    """The exit code of a program with these arguments, and what it printed."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        code = cli.run(main, Options, "greet", "Greets.")
        return code, *capsys.readouterr()

    return run


def failing(error):
    def main(options):
        raise error

    return main


def test_success_is_zero(run):
    def main(options):
        print(f"hello {options.name}")

    assert run(main, "--name", "Ada") == (0, "hello Ada\n", "")
    assert run(main) == (0, "hello nobody\n", "")


def test_an_argument_may_be_short_for_others(run, monkeypatch, capsys):
    def defaults(arguments):
        return Options(name="everybody" if "--name" not in arguments else "unused")

    def main(options):
        print(f"hello {options.name}")

    for arguments, name in (([], "everybody"), (["--name", "Ada"], "Ada")):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        assert cli.run(main, Options, "greet", None, defaults) == 0
        assert capsys.readouterr().out == f"hello {name}\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("the csv is empty"), 2, "error: the csv is empty\n"),
        (
            IsADirectoryError(21, "Is a directory", "vocab.txt"),
            2,
            "error: vocab.txt: Is a directory\n",
        ),
        (
            OSError(2, "No file", "a\x1b\nb"),
            2,
            "error: a\\x1b\\nb: No file\n",
        ),
        (ValueError("a\x1b[2J\nb: none"), 2, "error: a\\x1b[2J\\nb: none\n"),
        (OSError(28, "full"), 2, "error: [Errno 28] full\n"),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
            2,
            "error: not enough memory for a model or a batch of this size "
            "(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.): lower --hidden, "
            "--embed, --layers or --batch\n",
        ),
        (MemoryError("8 GiB"), 2, "error: not enough memory: 8 GiB\n"),
        (MemoryError(), 2, "error: not enough memory: the system gives no more\n"),
        (KeyboardInterrupt("all is saved"), 130, "all is saved\n"),
    ],
)
def test_known_endings_are_one_line_and_a_code(run, error, code, message):
    assert run(failing(error)) == (code, "", message)


def test_sigterm_ends_as_ctrl_c_does(run):
    def main(options):
        signal.raise_signal(signal.SIGTERM)

    assert run(main) == (130, "", "interrupted\n")


def test_a_warning_is_one_line(run):
    def main(options):
        warnings.warn("going back", stacklevel=2)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run(main) == (0, "", "warning: going back\n")


def test_a_bug_keeps_its_traceback(run):
    with pytest.raises(KeyError, match="bug"):
        run(failing(KeyError("bug")))


@pytest.mark.parametrize("arguments", [["--nome", "Ada"], ["--name"]])
def test_wrong_arguments_exit_with_2(run, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        run(failing(AssertionError), *arguments)
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_has_name_description_and_defaults(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(failing(AssertionError), "--help")
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for part in ("python -m experiments.greet", "Greets.", "Whom to greet", "nobody"):
        assert part in out


@dataclass(frozen=True)
class Places:
    """Where to be."""

    out: Path | None = None
    runs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Travel:
    """Places below each other."""

    places: Annotated[Places, tyro.conf.arg(name="")] = field(default_factory=Places)
    home: Path = Path("~")


def test_a_tilde_is_the_home_directory_in_every_path(monkeypatch):
    """As after `=`, where a shell leaves it; another's, who is nobody, stays."""
    seen = []
    arguments = ["--out=~/a", "--runs", "b", "~/c", "~/", "~nobody-here/d"]
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    monkeypatch.setenv("HOME", "/home/ada")
    assert cli.run(seen.append, Travel, "greet", None) == 0
    home = Path("/home/ada")
    runs = (Path("b"), home / "c", home, Path("~nobody-here/d"))
    assert seen == [Travel(Places(home / "a", runs), home)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", ""], "--out is empty: name a path"),
        (["--out="], "--out is empty: name a path"),
        (["--runs", "a", ""], "--runs is empty: name a path"),
    ],
)
def test_an_empty_path_is_not_the_current_directory(
    monkeypatch, capsys, arguments, message
):
    """As of `"$UNSET"` in a shell."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    assert cli.run(failing(AssertionError), Travel, "greet", None) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@dataclass(frozen=True)
class Layer:
    """Numbers of a layer."""

    hidden: int = 8
    """Size."""
    clip: float | None = None
    """Norm."""


@dataclass(frozen=True)
class Numbers:
    """Numbers below each other."""

    layer: Layer = field(default_factory=Layer)
    rate: float = 0.5
    bias: bool = True
    typed: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Numbers()),
        (["--hidden", "8"], Numbers(typed=("hidden",))),
        (
            ["--no-bias", "--clip=1"],
            Numbers(Layer(clip=1.0), bias=False, typed=("clip", "bias")),
        ),
        (
            ["--rate", "2", "--clip", "None"],
            Numbers(rate=2.0, typed=("clip", "rate")),
        ),
    ],
)
def test_the_options_say_what_was_typed(monkeypatch, arguments, expected):
    seen = []
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    assert cli.run(seen.append, Numbers, "greet", None) == 0
    assert seen == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "2.5"], "--hidden: it must be an integer, got '2.5'"),
        (["--rate", "1,5"], "--rate: it must be a number, got '1,5'"),
        (["--clip", "low"], "it must be a number, got 'low'"),
    ],
)
def test_what_is_no_number(monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.run(failing(AssertionError), Numbers, "greet", None)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert "invalid literal" not in err


CHATTY = """
import sys
import warnings
from dataclasses import dataclass
from experiments.harness import cli

@dataclass
class Options:
    lines: int = 100_000

def main(options):
    for number in range(options.lines):
        print("line", number)

sys.exit(cli.run(main, Options, "chatty", None))
"""


@pytest.mark.parametrize("arguments", ["--lines=100000", "--lines=2", "--help"])
def test_a_closed_pipe_ends_quietly(arguments):
    """As `| head -1` does, in the middle of the output and before its first flush."""
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", CHATTY, arguments],
        env=buffered,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if arguments == "--lines=100000":
            assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_standard_output_that_takes_no_more(run, monkeypatch):
    """As with `> /dev/full`, of which the system says no name."""

    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    for main in (print, lambda options: sys.stdout.flush()):
        code, _, err = run(main)
        assert code == 2
        assert err == (
            "error: cannot write to standard output: No space left on device: redirect "
            "it elsewhere\n"
        )


def test_streams_that_are_closed_are_empty():
    """As with `<&- >&- 2>&-`; and what others write to is no file of the program."""
    closing = "import os; [os.close(k) for k in range(3)]; os.execvp(%r, %r)"
    code = CHATTY.replace("print(", "assert sys.stdin.read() == ''; print(")
    command = [sys.executable, "-c", code, "--lines=2"]
    script = closing % (sys.executable, command)
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
