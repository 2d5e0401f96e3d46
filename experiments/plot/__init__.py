"""Learning curves of several runs: `python -m experiments.plot`."""
