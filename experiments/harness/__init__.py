"""What the programs share: command line, training loop, work directory, pages."""
