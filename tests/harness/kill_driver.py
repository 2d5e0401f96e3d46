"""Runs a program again and again, each time in a process that is killed on the way.

    python -m tests.harness.kill_driver imdb

reads jobs from standard input, one JSON object a line, and answers each with another:
how the process ended, and how many file operations it did around its checkpoints.
"operation" says at which of these it kills itself, "seconds" after how long. It is
SIGKILL either way: nothing can be cleaned up. All is imported once, so that a process
costs a fork.
"""

import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from experiments.harness import cli

OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


class Operations:
    """An audit hook that counts the file operations at checkpoints, and kills."""

    def __init__(self, fatal: int | None):
        self.count = 0
        self._fatal = fatal

    def __call__(self, event: str, arguments: tuple) -> None:
        if event in OPERATIONS and "step_" in str(arguments[0]):
            self.count += 1
            if self.count == self._fatal:
                kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(name: str, job: dict, answer: int) -> int:
    """The exit code of the program, after its count is written to `answer`."""
    module = importlib.import_module(f"experiments.{name}.train")
    operations = Operations(job.get("operation"))
    sys.addaudithook(operations)
    if "seconds" in job:
        timer = threading.Timer(job["seconds"], kill)
        timer.daemon = True
        timer.start()
    sys.argv = [name, "--smoke", "--workdir", job["workdir"]]
    defaults = getattr(module, "defaults", None)
    code = cli.run(module.main, module.Options, name, None, defaults)
    os.write(answer, str(operations.count).encode())
    return code


def main(name: str) -> None:
    importlib.import_module(f"experiments.{name}.train")
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with Path(job["log"]).open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = 1
            try:
                code = run(name, job, writer)
            finally:
                os._exit(code)
        os.close(writer)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        count = int(os.read(reader, 100) or 0)
        os.close(reader)
        print(json.dumps({"status": status, "operations": count}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
