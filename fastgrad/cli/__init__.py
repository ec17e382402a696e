"""The commands of `python -m fastgrad`."""
