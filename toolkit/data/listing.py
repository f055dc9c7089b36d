"""A list of labeled picture files: made from a folder or a CSV file, checked before anything is decoded."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ToolkitError
from toolkit.files import escape, shorten

# Codes of the splits. `toolkit.data.split.split_by_digest` assigns UNSPLIT pictures to training or test.
TRAIN, VAL, TEST, UNSPLIT = 0, 1, 2, 3
SPLIT_LABELS = ("training", "validation", "test", "")

SPLIT_NAMES = {  # folder names and values in CSV files, in lower case
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing", "eval"), TEST),
}

MIN_CLASSES, MAX_CLASSES = 2, 1_000
MAX_NAME_LENGTH = 100  # characters of a class name


@dataclass(frozen=True)
class Problem:
    """A picture that cannot be used, and the reason: one printable line that begins with the path."""

    path: str
    error: str


@dataclass(frozen=True)
class Listing:
    """Labeled picture files, in the order of their paths.

    Attributes:
        root: the folder to which the paths are relative.
        paths: N relative paths.
        labels: int64 (N,), indices into `class_names`.
        splits: uint8 (N,): TRAIN, VAL, TEST or UNSPLIT.
        class_names: of the training pictures, in natural order.
        problems: files and folders that were found but cannot be used.
        notes: remarks for the user, one line each.
        key: a digest over paths, sizes, modification times, splits and labels; changes when a file changes.
    """

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    class_names: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    key: str

    def __len__(self) -> int:
        return len(self.paths)

    def escaped_path(self, index: int) -> str:
        """The path of a picture as shown in messages."""
        return escape(self.full_path(index))

    def full_path(self, index: int) -> str:
        """The path of a picture as it is opened."""
        return os.path.join(self.root, self.paths[index])


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One picture file: its path relative to the root, class, split, size in bytes and modification time in ns."""

    path: str
    class_name: str
    split: int
    size: int
    modified: int


def make_listing(
    root: Path, files: Sequence[ListedFile], *, problems: Iterable[Problem] = (), notes: Iterable[str] = ()
) -> Listing:
    """Check the classes of the files and index them.

    Raises:
        ToolkitError: fewer than 2 or more than 1,000 classes, an unusable class name, a class without training
            pictures, or no test pictures.
    """
    files, problems = sorted(files, key=lambda file: file.path), tuple(problems)
    names = sorted({file.class_name for file in files if file.split in (TRAIN, UNSPLIT)}, key=natural_sort_key)
    try:
        _check_classes(root, names, files)
    except ToolkitError as error:
        unread = (
            f"; {format_count(len(problems), 'file')} cannot be read, first {problems[0].error}" if problems else ""
        )
        raise ToolkitError(f"{error}{unread}") from None
    index = {name: label for label, name in enumerate(names)}
    digest = hashlib.sha256()
    for file in files:
        record = (file.path, file.class_name, file.split, file.size, file.modified)
        digest.update(repr(record).encode("utf-8", "surrogateescape"))
    return Listing(
        root=root,
        paths=tuple(file.path for file in files),
        labels=np.array([index[file.class_name] for file in files], np.int64),
        splits=np.array([file.split for file in files], np.uint8),
        class_names=tuple(names),
        problems=problems,
        notes=tuple(notes),
        key=digest.hexdigest(),
    )


def natural_sort_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key that compares digits as numbers: class2 before class10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts], name


def make_listed_file(root: Path, path: str, class_name: str, split: int, status: os.stat_result) -> ListedFile:
    """Make the record of a file from its status."""
    return ListedFile(relative_path(root, path), class_name, split, status.st_size, status.st_mtime_ns)


def relative_path(root: Path, path: str) -> str:
    """Remove `root` from the start of `path`; faster than `os.path.relpath`."""
    return path.removeprefix(os.path.join(root, ""))


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun, such as "2,000 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _check_classes(root: Path, names: list[str], files: Sequence[ListedFile]) -> None:
    where = escape(root)
    for name in names:
        if not name.isprintable() or not name.strip():
            raise ToolkitError(
                f"{where}: the class name {shorten(repr(name))} holds control characters or bytes that are not UTF-8; "
                "rename the class"
            )
        if len(name) > MAX_NAME_LENGTH:
            raise ToolkitError(
                f"{where}: the class name {shorten(name)} has {len(name)} characters, more than {MAX_NAME_LENGTH}"
            )
    if not MIN_CLASSES <= len(names) <= MAX_CLASSES:
        found = ", ".join(map(shorten, names[:5])) + (", ..." if len(names) > 5 else "")
        raise ToolkitError(
            f"{where}: {MIN_CLASSES} to {MAX_CLASSES:,} classes with training pictures are needed, "
            f"{len(names):,} found{': ' if names else ''}{found}"
        )
    known = set(names)
    unknown = sorted({file.class_name for file in files} - known, key=natural_sort_key)
    if unknown:
        example = next(file for file in files if file.class_name == unknown[0])
        raise ToolkitError(
            f"{where}: the class {shorten(unknown[0])} has {SPLIT_LABELS[example.split]} pictures "
            f"({escape(example.path)}) but no training pictures"
            + (f"; the same applies to {len(unknown) - 1} more" if len(unknown) > 1 else "")
        )
    if not any(file.split in (TEST, UNSPLIT) for file in files):
        raise ToolkitError(f"{where}: there are training pictures but no test pictures; add test/CLASS/... to it")
