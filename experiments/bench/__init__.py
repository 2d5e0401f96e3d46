"""Speed beside other libraries: `python -m experiments.bench`."""
