"""List a folder of pictures: `train/CLASS/...` and `test/CLASS/...`, or `CLASS/...` without a split."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.data.listing import (
    SPLIT_LABELS,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    UNSPLIT,
    ListedFile,
    Listing,
    Problem,
    format_count,
    make_listed_file,
    make_listing,
    relative_path,
)
from toolkit.errors import ToolkitError
from toolkit.files import escape
from toolkit.inference.image import is_picture_name

LAYOUT = "train/CLASS/... and test/CLASS/..., or CLASS/..."

_DOCUMENTS = {"readme", "license", "copying"}
_IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


def list_folder(root: Path) -> Listing:
    """List the pictures in a folder of classes.

    Hidden files, system files and files without a picture's suffix are ignored. Pictures may lie in folders within a
    class. Links to pictures in the folder are followed; links to folders in it are ignored, and links that leave it are
    listed as problems.

    Raises:
        ToolkitError: the folder cannot be listed, has no pictures, or has another layout; also as `make_listing`.
    """
    scan = _Scan(Path(os.path.realpath(root)))
    top = scan.list_entries(os.fspath(scan.root))
    folders = [entry for entry in top if scan.is_folder(entry) and not entry.is_symlink()]
    splits = _find_splits(root, folders)
    if splits:
        for entry in folders:
            if entry.path not in splits.values():
                scan.notes.append(f"{escape(entry.path)} is ignored: its name is not that of a split")
        for entry in top:
            if entry.is_symlink() and entry.name.lower() in SPLIT_NAMES and scan.is_folder(entry):
                scan.may_enter(entry)  # reports the link
            elif is_picture_name(entry.name) and not scan.is_folder(entry):
                scan.count_loose(entry)
        for split, path in sorted(splits.items()):
            scan.add_classes(scan.list_entries(path), split)
    else:
        scan.add_classes(top, UNSPLIT)
    if not scan.files:
        found = f"; {scan.problems[0].error}" if scan.problems else ""
        raise ToolkitError(f"{escape(root)}: no pictures found{found}; expected {LAYOUT} with picture files")
    notes = [*scan.notes]
    if scan.loose:
        notes.append(
            f"ignored {format_count(scan.loose, 'picture')} outside of a class folder, such as {scan.loose_example}"
        )
    return make_listing(root, scan.files, problems=scan.problems, notes=notes)


@dataclass
class _Scan:
    """The files and remarks collected so far."""

    root: Path  # resolved
    files: list[ListedFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loose: int = 0  # pictures outside of a class folder
    loose_example: str = ""

    def add_classes(self, entries: list[os.DirEntry[str]], split: int) -> None:
        """Add the pictures of every class folder among the entries."""
        for entry in entries:
            if self.is_folder(entry):
                self.add_class(entry, split)
            elif is_picture_name(entry.name):
                self.count_loose(entry)
            elif "." not in entry.name and entry.name.lower() not in _DOCUMENTS:
                self.notes.append(f"{escape(entry.path)} is a file, not a class folder: ignored")

    def count_loose(self, picture: os.DirEntry[str]) -> None:
        """Count a picture outside of a class folder."""
        self.loose += 1
        self.loose_example = self.loose_example or escape(picture.path)

    def add_class(self, folder: os.DirEntry[str], split: int) -> None:
        """Add the pictures in a class folder and in the folders within it."""
        before, pending = len(self.files) + len(self.problems), [folder]
        while pending:
            current = pending.pop()
            if not self.may_enter(current):
                continue
            inner = []
            for entry in self.iterate_entries(current.path):
                if self.is_folder(entry):
                    inner.append(entry)
                elif is_picture_name(entry.name):
                    self.add_file(entry, folder.name, split)
            pending += sorted(inner, key=lambda entry: entry.name, reverse=True)
        if len(self.files) + len(self.problems) == before:
            self.notes.append(f"{escape(folder.path)} has no pictures: ignored")

    def may_enter(self, folder: os.DirEntry[str]) -> bool:
        """Return whether to read a folder. Links are not read: their targets are listed themselves or lie outside."""
        if not folder.is_symlink():
            return True
        if not self.leaves(folder):
            self.notes.append(f"{escape(folder.path)} is a link to a folder of this data set: ignored")
        return False

    def add_file(self, entry: os.DirEntry[str], class_name: str, split: int) -> None:
        if self.leaves(entry):
            return
        try:
            self.files.append(make_listed_file(self.root, entry.path, class_name, split, entry.stat()))
        except OSError as error:  # it was removed, or is a broken or circular link
            self.add_problem(entry.path, f"cannot be read: {error.strerror or error}")

    def leaves(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry is a link to a target outside the root; if so, record a problem."""
        if not entry.is_symlink():
            return False
        target = os.path.realpath(entry.path)
        if Path(target).is_relative_to(self.root):
            return False
        self.add_problem(entry.path, f"is a link that leaves the folder, to {escape(target)}")
        return True

    def add_problem(self, path: str, reason: str) -> None:
        self.problems.append(Problem(relative_path(self.root, path), f"{escape(path)} {reason}"))

    def list_entries(self, folder: str) -> list[os.DirEntry[str]]:
        """The folders and files of a folder, sorted by name."""
        return sorted(self.iterate_entries(folder), key=lambda entry: entry.name)

    def iterate_entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Yield the folders and files of a folder one at a time, so that a million of them fit in memory."""
        try:
            with os.scandir(folder) as entries:
                yield from _visible(entries)
        except OSError as error:
            self.add_problem(folder, f"cannot be listed: {error.strerror or error}")

    def is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself
            return False


def _visible(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    for entry in entries:
        if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED:
            yield entry


def _find_splits(root: Path, folders: list[os.DirEntry[str]]) -> dict[int, str]:
    """The folders of the splits, by code; empty for a folder of classes.

    A folder named `train` without folders inside is a class (of trains), not a split.
    """
    found: dict[int, str] = {}
    named = [(SPLIT_NAMES[entry.name.lower()], entry.path) for entry in folders if entry.name.lower() in SPLIT_NAMES]
    if not any(split == TRAIN and _holds_folders(path) for split, path in named):
        return {}
    for split, path in named:
        if split in found:
            raise ToolkitError(
                f"{escape(root)}: both {os.path.basename(found[split])}/ and {os.path.basename(path)}/ name the "
                f"{SPLIT_LABELS[split]} pictures; keep one of them"
            )
        found[split] = path
    if TEST not in found:
        raise ToolkitError(
            f"{escape(root)} has {os.path.basename(found[TRAIN])}/ but no test/ with test pictures; expected {LAYOUT}"
        )
    return found


def _holds_folders(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(entry.is_dir() for entry in _visible(entries))
    except OSError:
        return False
