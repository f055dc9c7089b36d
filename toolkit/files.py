"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import ToolkitError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, that replaces `path` when the block ends without an exception.

    The contents are flushed to the disk before the rename, so a crash or a power cut leaves either the old file or
    the new one. When the block raises, the temporary file is removed and `path` is left as it was. Missing parent
    folders are created.

    Raises:
        ToolkitError: the file cannot be written (read-only folder, full disk, ...), or `path` is a folder, a device
            or a pipe, whose place no file may take.
    """
    try:
        if path.exists() and not path.is_file():  # the superuser's rename would replace /dev/null
            raise ToolkitError(f"cannot write {path}: it exists and is no ordinary file")
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


def _mode_of_new_files() -> int:
    """Permissions that `open` would give (mkstemp's are for the owner alone)."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
