"""Paths -> pictures: find the files that files, folders and globs name, and open each as an array of pixels."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.errors import ToolkitError
from toolkit.files import display
from toolkit.inference.image import MAX_BYTES, SIDE, is_picture_name, prepare, read_image

STDIN = "-"


PathLike = str | os.PathLike[str]


Source = PathLike | NDArray[np.uint8] | Image.Image


@dataclass(frozen=True)
class Failure:
    """A path that gave no prediction, and why: one line that begins with the path and is safe to show."""

    path: str
    error: str


def expand(paths: Iterable[PathLike]) -> Iterator[str | Failure]:
    """The pictures that `paths` name, found as they are asked for.

    A path that exists is never taken for a glob. A folder gives the files in it whose names end like a picture's, by
    name, then those of its folders; hidden names are passed over, and a folder that links lead to again is read once.
    """
    for named in paths:
        path = os.fspath(named)
        if path == STDIN or not glob.has_magic(path) or os.path.lexists(path):
            yield from _pictures_at(path)
            continue
        matches = _matches(path)
        if not matches:
            yield Failure(path, f"{display(path)}: no file has such a name, and none matches it as a pattern")
        for match in matches:
            yield from _pictures_at(match)


def _matches(pattern: str) -> list[str]:
    if "**" not in pattern:
        return sorted(glob.iglob(pattern))
    # pathlib's ** does not follow links into folders, so a loop of links ends; glob's does.
    whole = Path(pattern)
    found = Path(whole.anchor).glob(str(whole.relative_to(whole.anchor)))
    try:
        return sorted(str(path) for path in found if not path.is_dir())
    except ValueError:  # ** as a part of a name is no pattern for pathlib
        return []


def _pictures_at(path: str) -> Iterator[str | Failure]:
    if path == STDIN or not os.path.isdir(path):
        yield path
        return
    found = False
    for picture in _pictures_below(path):
        found = True
        yield picture
    if not found:
        yield Failure(path, f"{display(path)}: no picture in this folder (by the endings of the file names)")


def _pictures_below(top: str) -> Iterator[str | Failure]:
    visited: set[tuple[int, int]] = set()
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            files, inner = _names_in(folder)
        except OSError as error:
            yield Failure(folder, f"{display(folder)}: cannot be listed: {error.strerror or error}")
            continue
        yield from (os.path.join(folder, name) for name in files)
        folders += (os.path.join(folder, name) for name in reversed(inner))


def _names_in(folder: str) -> tuple[list[str], list[str]]:
    """The names of a folder's pictures and of its folders, sorted: of a million entries the names alone are kept."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _leads_to_folder(entry):
                folders.append(entry.name)
            elif is_picture_name(entry.name):
                files.append(entry.name)
    return sorted(files), sorted(folders)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


@dataclass(frozen=True)
class _Piped:
    """What came on standard input."""

    content: bytes


Taken = Source | Failure | _Piped


Decoded = tuple[str, NDArray[np.uint8]] | Failure


def take(source: Source | Failure) -> Taken:
    """Read standard input here, not in a thread: one that waits for input could not be interrupted."""
    if isinstance(source, str) and source == STDIN:
        return _Piped(sys.stdin.buffer.read(MAX_BYTES + 1))
    return source


def decode_several(sources: list[Taken]) -> list[Decoded]:
    return [_decode(source) for source in sources]


def _decode(source: Taken) -> Decoded:
    if isinstance(source, Failure):
        return source
    if isinstance(source, np.ndarray):
        return "", source if source.shape == (SIDE, SIDE, 3) else prepare(Image.fromarray(source))
    if isinstance(source, Image.Image):
        return "", prepare(source)
    path = STDIN if isinstance(source, _Piped) else os.fspath(source)
    try:
        if isinstance(source, _Piped):
            return path, read_image(source.content, name="standard input")
        return path, read_image(path)
    except ToolkitError as error:
        return Failure(path, str(error))
