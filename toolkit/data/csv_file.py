"""List the pictures that a CSV file names: columns `path`, `label` and optionally `split`."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from toolkit.data.listing import SPLIT_NAMES, UNSPLIT, ListedFile, Listing, Problem, make_listed_file, make_listing
from toolkit.errors import ToolkitError
from toolkit.files import escape, open_regular, shorten

MAX_BYTES = 256 * 2**20  # a million rows of 250 characters
_MAX_FIELD = 10_000  # characters; more than any path


def list_csv(path: Path) -> Listing:
    """List the pictures named in a CSV file, whose paths are relative to the file's folder.

    Raises:
        ToolkitError: the file cannot be read, is empty or lacks a column, or a row is invalid; names the line.
    """
    name, root = escape(path), Path(os.path.realpath(path.parent))
    files: list[ListedFile] = []
    problems: list[Problem] = []
    folders = _Folders(root)
    for line, (picture, label, split) in _read_rows(path, name):
        if os.path.isabs(picture) or not folders.contains(picture):
            raise ToolkitError(f"{name}, line {line}: the path {shorten(picture)} leaves the folder of the CSV file")
        full = os.path.join(root, picture)
        try:
            files.append(make_listed_file(root, full, label, split, os.stat(full)))
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            problems.append(Problem(picture, f"{escape(full)} cannot be read: {reason} ({name}, line {line})"))
    if not files and not problems:
        raise ToolkitError(f"{name} has a header but no rows; expected one picture per row")
    return make_listing(root, files, problems=problems)


def _read_rows(path: Path, name: str) -> Iterator[tuple[int, tuple[str, str, int]]]:
    """Yield the line number, and path, label and split code of each row."""
    csv.field_size_limit(_MAX_FIELD)
    with open_regular(path, max_bytes=MAX_BYTES) as file:
        reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        try:
            header = [column.strip().lower() for column in next(reader, [])]
            missing = [column for column in ("path", "label") if column not in header]
            if missing:
                raise ToolkitError(
                    f"{name}: the first line lacks the column {' and '.join(missing)}; expected path,label or "
                    f"path,label,split, found {shorten(','.join(header)) or 'nothing'}"
                )
            if repeated := next((column for column in header if header.count(column) > 1), None):
                raise ToolkitError(f"{name}: the first line has the column {shorten(repeated)} twice")
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, _parse_row(header, row, f"{name}, line {reader.line_num}")
        except UnicodeDecodeError as error:
            raise ToolkitError(
                f"{name} is not UTF-8 text ({error.reason}: 0x{error.object[error.start]:02x})"
            ) from error
        except csv.Error as error:
            raise ToolkitError(f"{name}, line {reader.line_num} is not valid CSV: {error}") from error


def _parse_row(header: list[str], row: list[str], where: str) -> tuple[str, str, int]:
    if len(row) != len(header):
        raise ToolkitError(f"{where} has {len(row)} cells, expected {len(header)}: {','.join(header)}")
    cells = dict(zip(header, row, strict=True))
    picture, label = cells["path"], cells["label"].strip()
    if not picture.strip() or not label:
        raise ToolkitError(f"{where}: the {'label' if picture.strip() else 'path'} is empty")
    if "split" not in cells:
        return picture, label, UNSPLIT
    split = SPLIT_NAMES.get(cells["split"].strip().lower())
    if split is None:
        raise ToolkitError(f"{where}: the split is {shorten(cells['split']) or 'empty'}; expected train, val or test")
    return picture, label, split


class _Folders:
    """Decide whether paths stay within a folder; each parent folder is resolved once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, bool] = {}

    def contains(self, path: str) -> bool:
        parent = os.path.dirname(path)
        if parent not in self.known:
            self.known[parent] = self._is_within(parent)
        full = os.path.join(self.root, path)
        if not self.known[parent] or not os.path.islink(full):
            return self.known[parent]
        return self._is_within(path)

    def _is_within(self, path: str) -> bool:
        try:
            return Path(os.path.realpath(os.path.join(self.root, path))).is_relative_to(self.root)
        except ValueError:  # a null byte in the name: not found when it is opened
            return True
