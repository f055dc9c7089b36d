"""Opening a file that a stranger may have put there: ordinary files alone, and only up to a size."""

import os
import stat
from typing import BinaryIO

from toolkit.errors import ToolkitError
from toolkit.names import display

# A FIFO that takes the file's place after it was looked at must not stop the program (POSIX; Windows has no such flag).
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: str | os.PathLike[str], *, max_bytes: int) -> BinaryIO:
    """The file at `path`, open for reading; links are followed, and nothing has been read yet.

    Raises:
        ToolkitError: there is no such file, it may not be read, it is a folder, a pipe, a device or a socket, it is
            empty, or it is larger than `max_bytes`.
    """
    name = display(path)
    try:
        _check(name, os.stat(path), max_bytes)  # before opening: opening a device can act on it
        descriptor = os.open(path, _FLAGS)
        try:
            _check(name, os.fstat(descriptor), max_bytes)  # once more: of the file that was really opened
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ToolkitError(f"{name}: cannot be opened: {reason}") from error


def _check(name: str, status: os.stat_result, max_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ToolkitError(f"{name}: is a folder; a file is needed here")
    if not stat.S_ISREG(status.st_mode):
        raise ToolkitError(f"{name}: is a {_kind(status.st_mode)}; only ordinary files are read")
    if status.st_size == 0:
        raise ToolkitError(f"{name}: is empty")
    if status.st_size > max_bytes:
        raise ToolkitError(f"{name}: has {status.st_size:,} bytes; at most {max_bytes:,} are read")


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe (FIFO)"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device"
