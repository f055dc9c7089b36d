"""Find the pictures that files, folders and globs name, and open each as an array of pixels."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.errors import ToolkitError
from toolkit.files import escape
from toolkit.inference.image import (
    MAX_BYTES,
    MAX_PIXELS,
    SIDE,
    is_picture_name,
    prepare,
    read_image,
)

STDIN = "-"

PathLike = str | os.PathLike[str]
Source = PathLike | NDArray[np.uint8] | Image.Image


@dataclass(frozen=True)
class Failure:
    """A path without a prediction, and the reason: one printable line that begins with the path."""

    path: str
    error: str


def expand(paths: Iterable[PathLike]) -> Iterator[str | Failure]:
    """Yield the pictures that `paths` name, each as soon as it is found.

    An existing path is never treated as a glob. A folder yields its files with a picture's suffix, sorted by name, then
    those of its subfolders. Hidden names are skipped, and a folder reached by several links is read once.
    """
    for named in paths:
        path = os.fspath(named)
        if path == STDIN or not glob.has_magic(path) or os.path.lexists(path):
            yield from _pictures_at(path)
            continue
        matches = _matches(path)
        if not matches:
            yield Failure(path, f"{escape(path)}: no file has this name, and none matches it as a pattern")
        for match in matches:
            yield from _pictures_at(match if match != STDIN else os.path.join(os.curdir, match))


def _matches(pattern: str) -> list[str]:
    whole = Path(pattern)
    if "**" not in whole.parts:  # else not a pattern of its own, and equal to *
        return sorted(glob.iglob(pattern))
    # pathlib's ** does not follow links to folders, so a loop of links ends; glob's does. pathlib matches hidden names.
    named = [part for part in whole.parts if part.startswith(".")]
    matches = []
    for path in Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))):
        hidden = (part for part in path.parts if part.startswith("."))
        if all(any(fnmatch(part, name) for name in named) for part in hidden) and not path.is_dir():
            matches.append(str(path))
    return sorted(matches)


def _pictures_at(path: str) -> Iterator[str | Failure]:
    if path == STDIN or not os.path.isdir(path):
        yield path
        return
    found = False
    for picture in _pictures_below(path):
        found = True
        yield picture
    if not found:
        yield Failure(path, f"{escape(path)}: no file in this folder has the suffix of a picture")


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
            files, inner = _list_folder(folder)
        except OSError as error:
            yield Failure(folder, f"{escape(folder)} cannot be listed: {error.strerror or error}")
            continue
        yield from (os.path.join(folder, name) for name in files)
        folders += (os.path.join(folder, name) for name in reversed(inner))


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
    """The sorted names of a folder's pictures and subfolders; other entries are not kept in memory."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif is_picture_name(entry.name):
                files.append(entry.name)
    return sorted(files), sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@dataclass(frozen=True)
class _Piped:
    """The contents of standard input."""

    content: bytes


Taken = Source | Failure | _Piped
Decoded = tuple[str, NDArray[np.uint8]] | Failure


def take(source: Source | Failure) -> Taken:
    """Read the source if it is standard input; not in a worker, which cannot be interrupted while it waits."""
    if not (isinstance(source, str) and source == STDIN):
        return source
    if sys.stdin is None:  # closed by the program that started this one
        return Failure(STDIN, "standard input is closed")
    try:
        return _Piped(sys.stdin.buffer.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:  # a folder, for example; closed since
        return Failure(STDIN, f"standard input cannot be read: {getattr(error, 'strerror', None) or error}")


def decode_several(sources: Sequence[Taken], *, resize: bool = True, max_pixels: int = MAX_PIXELS) -> list[Decoded]:
    """Decode each source by the picture rule, in order; a file that cannot be decoded gives a `Failure`.

    Args:
        sources: paths, pictures in memory, and failures, which are passed through.
        resize: whether to crop and resize to 32x32; False for models that do this themselves.
        max_pixels: the largest number of pixels of a file.

    Raises:
        ToolkitError: a picture in memory is damaged or too large.
    """
    return [_decode(source, resize=resize, max_pixels=max_pixels) for source in sources]


def _decode(source: Taken, *, resize: bool, max_pixels: int) -> Decoded:
    if isinstance(source, Failure):
        return source
    if isinstance(source, np.ndarray) and (not resize or source.shape == (SIDE, SIDE, 3)):
        return "", source
    if isinstance(source, np.ndarray | Image.Image):
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        return "", prepare(image, resize=resize)
    path = STDIN if isinstance(source, _Piped) else os.fspath(source)
    try:
        if isinstance(source, _Piped):
            return path, read_image(source.content, name="standard input", max_pixels=max_pixels, resize=resize)
        return path, read_image(path, max_pixels=max_pixels, resize=resize)
    except ToolkitError as error:
        return Failure(path, str(error))
