"""Small functions that processes are asked to call."""

import os
import signal
import time
from pathlib import Path


def kill_itself_once(*, marker: str) -> None:
    """A job that dies the first time that it is run."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_line(*, path: str, line: str, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    Path(path).write_text(line)


def divide_by_zero() -> None:
    raise ZeroDivisionError("by zero")
