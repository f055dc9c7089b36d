"""Keep decoded pictures in the cache folder, one file for each state of a data set."""

import io
import json
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import PIL
from filelock import FileLock, Timeout

from toolkit.data.listing import Listing
from toolkit.data.pictures import Pictures, decode_pictures
from toolkit.errors import ToolkitError, first_line
from toolkit.files import escape, open_regular, replacing
from toolkit.reporting import Note

_MAGIC = b"cifar pictures 1\n"
_MAX_BYTES = 2**40
_MAX_HEADER = 2**28
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)  # from an entry
_BLOCK = 2**22  # bytes read or checked at a time


def load_or_build(listing: Listing, folder: Path, build: Callable[[], Pictures], *, note: Note) -> Pictures:
    """Return the decoded pictures of a listing from the cache in `folder`; build and write the entry if missing.

    When several processes need the same entry, one builds it and the others wait for it. A damaged entry is rebuilt.
    If the folder cannot be written, the pictures are decoded without caching, and a note gives the reason.
    """
    path = folder / f"{_prefix(listing)}-{_key(listing)[:16]}.pictures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(folder / f".{_prefix(listing)}.lock", note)
    except OSError as error:
        note(f"decoded pictures are not cached: cannot write {escape(folder)}: {error.strerror or error}")
        return build()
    with lock:
        pictures = _read(path, listing, note)
        if pictures is not None and _errors_persist(listing, pictures):
            return pictures
        pictures = build()
        try:
            _write(path, listing, pictures)
        except ToolkitError as error:
            note(f"decoded pictures are not cached: {error}")
        else:
            _remove_older(path, listing)
    return pictures


def _key(listing: Listing) -> str:
    """Digest the listing and Pillow's version: different versions may decode a JPEG file differently."""
    return sha256(f"{listing.key} {PIL.__version__}".encode()).hexdigest()


def _prefix(listing: Listing) -> str:
    """Return the start of the file names of all entries of one folder."""
    return sha256(str(listing.root).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _acquire(path: Path, note: Note) -> AbstractContextManager[object]:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        note("waiting for another process that decodes these pictures")
        return lock.acquire()


def _write(path: Path, listing: Listing, pictures: Pictures) -> None:
    arrays = [pictures.pixels, pictures.digests, pictures.small]
    checksum = 0
    for array in arrays:
        checksum = _update_checksum(checksum, _view_bytes(array))
    header = {
        "key": _key(listing),
        "count": len(pictures),
        "crc32": checksum,
        "errors": pictures.errors,
        "near_duplicates": pictures.near_duplicates,
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + json.dumps(header).encode() + b"\n")
        for array in arrays:
            file.write(_view_bytes(array))


def _read(path: Path, listing: Listing, note: Note) -> Pictures | None:
    """Return the cached pictures; None if the entry is missing or damaged."""
    if not path.exists():
        return None
    try:
        with open_regular(path, max_bytes=_MAX_BYTES) as file:
            return _read_entry(file, listing)
    except (ToolkitError, *_DAMAGED) as error:
        note(f"the cache entry {escape(path)} is damaged ({first_line(error)}); the pictures are decoded again")
        return None


def _read_entry(file: BinaryIO, listing: Listing) -> Pictures:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("another format")
    header: dict[str, Any] = json.loads(file.readline(_MAX_HEADER))
    if header["key"] != _key(listing) or header["count"] != len(listing):
        raise ValueError("an entry of other files")
    pictures = Pictures.empty(len(listing))
    checksum = 0
    for array in (pictures.pixels, pictures.digests, pictures.small):
        target = _view_bytes(array)
        if cast("io.BufferedReader", file).readinto(target) != len(target):
            raise ValueError("incomplete")
        checksum = _update_checksum(checksum, target)
    if file.read(1) or checksum != header["crc32"]:
        raise ValueError("wrong checksum")
    errors = {int(index): str(error) for index, error in header["errors"].items()}
    if not all(0 <= index < len(listing) for index in errors):
        raise ValueError("wrong indices")
    pictures.errors.update(errors)
    near_duplicates = header["near_duplicates"]
    return replace(pictures, near_duplicates=None if near_duplicates is None else int(near_duplicates))


def _errors_persist(listing: Listing, pictures: Pictures) -> bool:
    """Decode the failed pictures again; return whether all still fail. A file may have been locked or unreachable."""
    paths = [listing.full_path(index) for index in sorted(pictures.errors)]
    return len(decode_pictures(paths).errors) == len(paths)


def _view_bytes(array: "np.ndarray[Any, Any]") -> memoryview:
    return array.view(np.uint8).reshape(-1).data


def _update_checksum(checksum: int, data: memoryview) -> int:
    for start in range(0, len(data), _BLOCK):
        checksum = zlib.crc32(data[start : start + _BLOCK], checksum)
    return checksum


def _remove_older(path: Path, listing: Listing) -> None:
    """Remove the entries of earlier states of the same folder."""
    for other in path.parent.glob(f"{_prefix(listing)}-*.pictures"):
        if other != path:
            other.unlink(missing_ok=True)
