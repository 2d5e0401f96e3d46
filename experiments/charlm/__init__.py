"""A character language model: `python -m experiments.charlm`."""
