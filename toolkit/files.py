"""Files: atomic writes, opening of untrusted files, and names made safe for a terminal, JSON and CSV."""

import os
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from toolkit.errors import ToolkitError, UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an exception.

    The contents are flushed to the disk before the rename, so a crash or a power failure leaves either the old file or
    the new one. When the block raises, the temporary file is removed and `path` is unchanged. Missing parent folders
    are created.

    Raises:
        ToolkitError: the file cannot be written (read-only folder, full disk, ...), or `path` is a folder, a device
            or a pipe, which are never replaced.
    """
    try:
        if path.exists() and not path.is_file():  # the superuser's rename would replace /dev/null
            raise ToolkitError(f"cannot write {path}: it exists and is not an ordinary file")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(_mode_of_new_files())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ToolkitError(f"cannot write {path}: {error.strerror or error}") from error


def require_writable(path: Path, *, suffix: str = "") -> None:
    """Check before long work that a result can be written to `path`.

    Raises:
        UsageError: the name lacks `suffix`.
        ToolkitError: `path` is not a regular file, or its folder cannot be written to.
    """
    if not path.name.lower().endswith(suffix):
        raise UsageError(f"{display(path)} must end in {suffix}")
    if path.exists() and not path.is_file():
        raise ToolkitError(f"cannot write {display(path)}: it exists and is no ordinary file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ToolkitError(f"cannot write {display(path)}: {display(folder)} is not a folder that can be written to")


def _mode_of_new_files() -> int:
    """The permissions of a file made by `open`; mkstemp gives access to the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


# O_NONBLOCK: opening a FIFO that replaced the file after the check must not block (POSIX; Windows has no such flag).
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: str | os.PathLike[str], *, max_bytes: int) -> BinaryIO:
    """Open the ordinary file at `path` for reading; links are followed.

    Raises:
        ToolkitError: the file does not exist, is not readable, is a folder, a pipe, a device or a socket, is empty, or
            is larger than `max_bytes`.
    """
    name = display(path)
    try:
        _check_regular(name, os.stat(path), max_bytes)  # before opening: opening a device may have an effect
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            _check_regular(name, os.fstat(descriptor), max_bytes)  # again: the file may have been replaced
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ToolkitError(f"{name}: cannot be opened: {reason}") from error


def _check_regular(name: str, status: os.stat_result, max_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ToolkitError(f"{name}: is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ToolkitError(f"{name}: is a {_kind_of(status.st_mode)}; only ordinary files are read")
    if status.st_size == 0:
        raise ToolkitError(f"{name}: is empty")
    if status.st_size > max_bytes:
        raise ToolkitError(f"{name}: has {status.st_size:,} bytes; at most {max_bytes:,} are read")


def _kind_of(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe (FIFO)"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device"


def display(name: str | os.PathLike[str]) -> str:
    r"""Escape `name` for a terminal: one line, without control sequences.

    Control characters, line ends and characters that reorder text become `\n`, `\x1b` or `\u202e`; a byte that is not
    UTF-8 becomes `\xff`. Letters of every script and spaces are unchanged.
    """
    text = os.fspath(name)
    return text if text.isprintable() else "".join(map(_escape, text))


def shorten(text: str, *, limit: int = 120) -> str:
    """Text from a file as a message may hold it: printable, one line, at most `limit` characters."""
    text = display(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def quote(value: object, *, limit: int = 120) -> str:
    """The `repr` of a value from a file, shortened as `shorten` does."""
    try:
        return shorten(repr(value), limit=limit)
    except (ValueError, RecursionError):  # a number of thousands of digits; tables nested beyond Python's limit
        return "a value too long to show"


def as_text(name: str | os.PathLike[str]) -> str:
    r"""Convert `name` to valid Unicode for JSON and CSV: a byte that is not UTF-8 becomes `\xff`."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _escape(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
