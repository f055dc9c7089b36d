"""Image file directories (TIFF 6.0, section 2): the tags of TIFF files and of EXIF blocks, with bounds on their values.

Pillow reads the value of every tag into memory, and the values of many tags may be the same bytes.
"""

import struct
from dataclasses import dataclass

from toolkit.inference.structure import refuse, require

# Bytes of one value, by the number of its type.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_AS_BYTES = {1, 2, 6, 7}  # Pillow makes each value of the other types a Python object
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}

_MAX_VALUES = 2**17
_POINTERS = (0x8769, 0x8825, 0xA005)  # the directories of EXIF, GPS and interoperability inside another


@dataclass(frozen=True)
class Directory:
    """One directory: `entries` maps a tag to its type, the number of its values, and the position of the first one."""

    content: bytes
    order: str
    entries: dict[int, tuple[int, int, int]]

    def integers(self, tag: int) -> tuple[int, ...]:
        """The values of a tag, all of them unsigned; () where the tag is missing."""
        if tag not in self.entries:
            return ()
        kind, count, place = self.entries[tag]
        require(kind in _INTEGERS, f"tag {tag} has the type {kind}")
        form = f"{self.order}{count}{_INTEGERS[kind]}"
        require(place + struct.calcsize(form) <= len(self.content), f"tag {tag} lies beyond the end of the file")
        return struct.unpack_from(form, self.content, place)

    def integer(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        values = self.integers(tag)
        return values[0] if values else default


def read_directory(content: bytes) -> Directory | None:
    """Read the first directory of a TIFF file or an EXIF block; return None if it has no directory.

    Raises:
        ToolkitError: reading the values would take far more memory than the size of the file.
    """
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None or len(content) < 8:
        return None
    big = content[2] == 43  # as Pillow decides, so never in big-endian files
    if big and len(content) < 16:
        return None
    offset: int = struct.unpack_from(f"{order}Q" if big else f"{order}I", content, 8 if big else 4)[0]
    return _directory_at(content, order, offset, big=big)


def check_cost(content: bytes) -> None:
    """Check an EXIF block before Pillow reads it. A damaged block passes, because the pixels may be intact.

    Raises:
        ToolkitError: reading the block would take far more memory than its size.
    """
    while content.startswith(b"Exif\0\0"):
        content = content[6:]
    directory = read_directory(content)
    if directory is not None:
        check_inner(directory)


def check_inner(directory: Directory) -> None:
    """Check the directories that a directory points to, as `check_cost` does."""
    remaining, seen = [directory], 0
    while remaining:
        outer = remaining.pop()
        for tag in _POINTERS:
            kind, count, place = outer.entries.get(tag, (0, 0, 0))
            if kind not in _INTEGERS or count != 1 or place + _SIZES[kind] > len(outer.content):
                continue
            seen += 1
            require(seen <= 8, "its directories point to each other")
            inner = _directory_at(outer.content, outer.order, outer.integer(tag, 0), big=False)
            remaining += [inner] if inner else []


def _directory_at(content: bytes, order: str, offset: int, *, big: bool) -> Directory | None:
    head, step = (8, 20) if big else (2, 12)
    if offset + head > len(content):
        return None
    count: int = struct.unpack_from(f"{order}Q" if big else f"{order}H", content, offset)[0]
    require(count < 2**16, f"its directory has {count:,} tags")
    entries: dict[int, tuple[int, int, int]] = {}
    size, start = 0, offset + head
    for place in range(start, min(start + count * step, len(content) - step + 1), step):
        tag, kind, values = struct.unpack_from(f"{order}HHQ" if big else f"{order}HHI", content, place)
        width = values * _SIZES.get(kind, 0)
        inline = place + (12 if big else 8)
        if width > (8 if big else 4):
            inline = struct.unpack_from(f"{order}Q" if big else f"{order}I", content, inline)[0]
        available = min(width, max(len(content) - inline, 0))
        require(kind in _AS_BYTES or available // _SIZES.get(kind, 1) <= _MAX_VALUES, f"tag {tag} has too many values")
        size += available
        if size > 2 * len(content) + 2**16:
            refuse("the values of its tags are larger than the file")
        entries.setdefault(tag, (kind, values, inline))
    return Directory(content, order, entries)
