"""A language model of characters, bytes or words: `python -m experiments.charlm`."""
