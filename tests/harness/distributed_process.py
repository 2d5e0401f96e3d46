"""One process of a run, as `tests.harness.test_distributed` starts it: a program that
is sent a signal at a step.

    python -m tests.harness.distributed_process PROGRAM STEP SIGNAL ARGUMENT...
"""

import os
import sys
import time
from importlib import import_module

from experiments.harness import cli
from jaxrnn import training


def main(name, at, signal, *arguments):
    module = import_module(f"experiments.{name}.train")
    make_stateful_train_step = training.make_stateful_train_step

    def make_signalled_step(*given):
        step = make_stateful_train_step(*given)

        def signalled(state, carry, batch):
            if int(state.step) == int(at):
                os.kill(os.getpid(), int(signal))
            if int(state.step) >= int(at) >= 0:
                time.sleep(0.5)  # JAX looks once a second whether it was asked to stop.
            return step(state, carry, batch)

        return signalled

    training.make_stateful_train_step = make_signalled_step
    sys.argv = [name, *arguments]
    defaults = getattr(module, "defaults", None)
    return cli.run(module.main, module.Options, name, module.__doc__, defaults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
