"""A number of bytes that threads share: who needs more than is free waits until others have given theirs back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Grants reservations in the order of the requests, so that a large one is not overtaken by many small ones."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._queue = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of the budget, at most all of it, for the duration of the block."""
        size = min(size, self.size)
        with self._queue, self._changed:
            while self._free < size:
                self._changed.wait()
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify()
