"""Read files of `torch.save` that are not trusted: nothing is executed, and sizes are bounded."""

import hashlib
import io
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ToolkitError, first_line
from toolkit.files import escape, open_regular, shorten
from toolkit.runs.pickle_structure import check_pickle

# The largest network here takes 8 MB with the state of Adam.
MAX_BYTES = 64 * 2**20
MAX_VALUES = 100_000
MAX_TEXT = 1000  # characters of one value

# The zip directory of about a thousand records. Python's reader takes quadratic time for a record's extra fields.
_MAX_DIRECTORY_BYTES = 2**18
_RECORD = re.compile(
    r"([\w.-]{1,100})/(data\.pkl|data/\d{1,9}|byteorder|version|\.data/serialization_id|\.format_version"
    r"|\.storage_alignment)"
)


def read_torch_file(path: Path) -> tuple[Any, str]:
    """Load the file at `path` to the CPU; return its contents and the SHA-256 of the bytes that were loaded.

    Raises:
        ToolkitError: not a regular file, too large, damaged, or with anything but tensors and plain values.
    """
    with open_regular(path, max_bytes=MAX_BYTES) as file:
        content = file.read(MAX_BYTES)
    try:
        values = torch.load(_rewrite(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make the readers raise nearly everything
        raise ToolkitError(
            f"{escape(path)} is not a checkpoint that can be read safely: {shorten(first_line(error))}"
        ) from error
    return values, hashlib.sha256(content).hexdigest()


def are_plain(values: list[Any], *, keys: Any) -> bool:
    """Whether `values` are tensors, printable text, numbers, and lists, tuples and dictionaries of them, not too many.

    Args:
        values: checked with all their elements.
        keys: the allowed types of dictionary keys.
    """
    # Shared values count each time: a few bytes of nested lists would otherwise fill the memory when written.
    remaining, count, size = list(values), 0, 0
    while remaining:
        value = remaining.pop()
        count += 1
        if isinstance(value, dict):
            if not all(isinstance(key, keys) for key in value):
                return False
            remaining += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            remaining += value
        elif isinstance(value, Tensor):
            size += value.numel() * value.element_size()
        elif isinstance(value, str):
            if len(value) > MAX_TEXT or not value.isprintable():
                return False
        elif isinstance(value, int):
            if abs(value) >= 2**63:  # Python may refuse to format larger ones
                return False
        elif not (value is None or isinstance(value, float)):
            return False
        if count > MAX_VALUES or len(remaining) > 2 * MAX_VALUES or size > MAX_BYTES:
            return False
    return True


def _rewrite(content: bytes) -> io.BytesIO:
    """Write the checked records into a new zip archive: two readers may interpret the original differently.

    Raises:
        ValueError: compressed, overlapping or foreign records, or a pickle with anything but tensors and plain values.
    """
    if (size := _directory_size(content)) > _MAX_DIRECTORY_BYTES:
        raise ValueError(f"its list of records has {size:,} bytes")
    checked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as copy:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its records are compressed")
        if sum(entry.file_size for entry in entries) > MAX_BYTES or len({e.filename for e in entries}) < len(entries):
            raise ValueError("its records overlap")
        names = [_RECORD.fullmatch(entry.filename) for entry in entries]
        if not all(names) or len({name[1] for name in names if name}) > 1:
            raise ValueError("its records have names that no checkpoint has")
        for entry in entries:
            record = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                check_pickle(record)
            copy.writestr(entry.filename, record)
    checked.seek(0)
    return checked


def _directory_size(content: bytes) -> int:
    """Read the size of the zip archive's central directory from its end record (APPNOTE.TXT, 4.3.14 to 4.3.16)."""
    if content[-22:-18] != b"PK\5\6":  # torch writes no comment behind it
        raise ValueError("it does not end as a file of torch.save does")
    size: int = struct.unpack_from("<I", content, len(content) - 10)[0]
    if content[-42:-38] == b"PK\6\7" and content[-98:-94] == b"PK\6\6":
        size = max(size if size < 2**32 - 1 else 0, struct.unpack_from("<Q", content, len(content) - 58)[0])
    return size
