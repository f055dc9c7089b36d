"""Files: atomic writes, opening of untrusted files, and names made safe for a terminal, JSON and CSV."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from toolkit.errors import ToolkitError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends without an exception.

    The contents are flushed to the disk before the rename, so a crash or a power failure leaves either the old file or
    the new one. When the block raises, the temporary file is removed and `path` is unchanged. Missing parent folders
    are created, and temporary files of killed processes that wrote to `path` are removed.

    Raises:
        ToolkitError: the file cannot be written (read-only folder, full disk, ...), or `path` is a folder, a device
            or a pipe, which are never replaced.
    """
    try:
        if path.exists() and not path.is_file():  # the superuser's rename would replace /dev/null
            raise ToolkitError(f"cannot write {escape(path)}: it exists and is not an ordinary file")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with _temporary_file(path) as temporary:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(_mode_of_new_files())
            temporary.replace(path)
    except OSError as error:
        raise ToolkitError(f"cannot write {escape(path)}: {error.strerror or error}") from error


@contextmanager
def create_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and rename it to `path` when the block ends without an exception.

    Raises:
        FileExistsError: `path` exists, before the block or after it.
        OSError: the folder cannot be created.
    """
    remove_leftovers(path)
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exists", str(path))
    with _temporary_folder(path) as temporary:
        yield temporary
        temporary.chmod(_mode_of_new_files() | 0o111 & ~_umask())
        try:
            temporary.rename(path)
        except OSError as error:
            if os.path.lexists(path):  # another process was faster
                raise FileExistsError(errno.EEXIST, "exists", str(path)) from error
            raise


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=_temporary_prefix(path), suffix=_SUFFIX, dir=path.parent)
    temporary = Path(name)
    try:
        with _in_use(descriptor):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    temporary = Path(tempfile.mkdtemp(prefix=_temporary_prefix(path), suffix=_SUFFIX, dir=path.parent))
    try:
        with _in_use(os.open(temporary, os.O_RDONLY)) if fcntl else nullcontext():
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_SUFFIX = ".partial"


def _temporary_prefix(path: Path) -> str:
    """Return the name prefix of temporary files for `path`; a long name is hashed, to fit the file system's limit."""
    name = path.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


@contextmanager
def _in_use(descriptor: int) -> Iterator[None]:
    """Mark a temporary file or folder as in use until the block ends, or the process does."""
    if fcntl is None:  # Windows, where an open file cannot be renamed
        os.close(descriptor)
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders of killed processes that wrote to `path`."""
    prefix = _temporary_prefix(path)
    try:
        names = [name for name in os.listdir(path.parent) if name.startswith(prefix) and name.endswith(_SUFFIX)]
    except OSError:
        return
    for leftover in (path.parent / name for name in names):
        if _is_abandoned(leftover):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with suppress(OSError):
                    leftover.unlink()


def _is_abandoned(path: Path) -> bool:
    """Return whether no process uses a temporary file any more; on Windows, whether it is older than a day."""
    try:
        if fcntl is None:
            return time.time() - path.lstat().st_mtime > 86_400
        if not stat.S_ISREG(path.lstat().st_mode) and not path.is_dir():
            return False
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def require_writable(path: Path, *, suffix: str = "") -> None:
    """Check before long work that a result can be written to `path`, by writing a temporary file there.

    Raises:
        UsageError: the name lacks `suffix`.
        ToolkitError: `path` is not a regular file, its name is too long, or its folder cannot be written to.
    """
    if not path.name.lower().endswith(suffix):
        raise UsageError(f"{escape(path)} must end in {suffix}")
    try:
        path.lstat()
        exists = True
    except FileNotFoundError:
        exists = False
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ToolkitError(f"cannot write {shorten(str(path))}: {reason}") from error
    if exists and not path.is_file():
        raise ToolkitError(f"cannot write {escape(path)}: it exists and is not an ordinary file")
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    try:
        if not folder.is_dir():
            raise NotADirectoryError
        with _temporary_file(folder / path.name):
            pass
    except OSError as error:
        raise ToolkitError(
            f"cannot write {escape(path)}: {escape(folder)} is not a folder that can be written to"
        ) from error


def _mode_of_new_files() -> int:
    """The permissions of a file made by `open`; mkstemp gives access to the owner alone."""
    return 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


# O_NONBLOCK: opening a FIFO that replaced the file after the check must not block (POSIX; Windows has no such flag).
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: str | os.PathLike[str], *, max_bytes: int) -> BinaryIO:
    """Open the ordinary file at `path` for reading; links are followed.

    Raises:
        ToolkitError: the file does not exist, is not readable, is a folder, a pipe, a device or a socket, is empty, or
            is larger than `max_bytes`.
    """
    name = escape(path)
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
        raise ToolkitError(f"{name} cannot be opened: {reason}") from error


def _check_regular(name: str, status: os.stat_result, max_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ToolkitError(f"{name} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise ToolkitError(f"{name} is a {_describe_kind(status.st_mode)}; only ordinary files are read")
    if status.st_size == 0:
        raise ToolkitError(f"{name} is empty")
    if status.st_size > max_bytes:
        raise ToolkitError(f"{name} has {status.st_size:,} bytes; at most {max_bytes:,} are read")


def _describe_kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe (FIFO)"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device"


def escape(name: str | os.PathLike[str]) -> str:
    r"""Escape `name` for a terminal: one line, without control sequences.

    Control characters, line ends and characters that reorder text become `\n`, `\x1b` or `\u202e`; a byte that is not
    UTF-8 becomes `\xff`. Letters of every script and spaces are unchanged.
    """
    text = os.fspath(name)
    return text if text.isprintable() else "".join(map(_escape_character, text))


def shorten(text: str, *, limit: int = 120) -> str:
    """Escape text from a file for a message: printable, one line, at most `limit` characters."""
    text = escape(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def quote(value: object, *, limit: int = 120) -> str:
    """The `repr` of a value from a file, shortened as `shorten` does."""
    try:
        return shorten(repr(value), limit=limit)
    except (ValueError, RecursionError):  # an integer of thousands of digits; nesting above the recursion limit
        return "a value too long to show"


def as_text(name: str | os.PathLike[str]) -> str:
    r"""Convert `name` to valid Unicode, for JSON: a byte that is not UTF-8 becomes `\xff`."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _escape_character(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
