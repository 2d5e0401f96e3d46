"""Shared by the programs: command line, training loop, work directory, reports."""
