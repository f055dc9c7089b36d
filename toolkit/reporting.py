"""Callbacks by which long operations report to their caller, and the switch that silences progress and notes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Note = Callable[[str], None]  # a line of text
Progress = Callable[[int, int], None]  # how much is done, of how much in all


def ignore(*values: object) -> None:
    """The default of every callback."""


_silenced = False


@contextmanager
def silence(wanted: bool = True) -> Iterator[None]:
    """Show neither progress nor notes inside the block and the blocks nested in it; change nothing if not `wanted`."""
    global _silenced
    before = _silenced
    _silenced = before or wanted
    try:
        yield
    finally:
        _silenced = before


def is_silenced() -> bool:
    """Whether the caller is inside a `silence` block."""
    return _silenced
