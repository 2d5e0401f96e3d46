"""Sentiment of movie reviews: `python -m experiments.imdb`."""
