"""A byte budget shared by threads: a reservation larger than the free bytes waits until others are released."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Grant reservations in the order of the requests, so that small ones cannot delay a large one indefinitely."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._queue = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes, at most the whole budget, for the duration of the block."""
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
