"""Callbacks by which long operations report to their caller."""

from collections.abc import Callable

Note = Callable[[str], None]  # a line of text
Progress = Callable[[int, int], None]  # how much is done, of how much in all


def ignore(*values: object) -> None:
    """The default of every callback."""
