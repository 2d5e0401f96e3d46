"""Every cell at an equal number of parameters: `python -m experiments.cells`."""
