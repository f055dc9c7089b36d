"""The structure of JPEG files (ITU-T T.81, annex B): segments before the first scan, then the number of scans."""

import re

from toolkit.inference.ifd import check_cost
from toolkit.inference.structure import Structure, refuse, require

_EOI, _SOS = 0xD9, 0xDA
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = {_BASELINE, _EXTENDED, _PROGRESSIVE}
_RESTARTS = range(0xD0, 0xD8)
_APPLICATION = range(0xE0, 0xF0)
_TABLES = {0xC4, 0xDB, 0xDD, 0xFE}  # Huffman and quantization tables, restart interval, comment

# Photographs have up to a hundred segments; those with a depth map or a large color profile have some hundreds.
_MAX_SEGMENTS = 2000
_MAX_SEGMENT_BYTES = 32 * 2**20
_MAX_PADDING = 2**16  # bytes between segments, which Pillow skips one by one
_MAX_EXIF_BYTES = 2**20  # Pillow joins several EXIF segments by copying

# Encoders write about ten scans. A decoder passes over all coefficients at each.
_MAX_SCANS = 64
_MAX_SCANNED_PIXELS = 2**31  # scans times pixels

_ANY_MARKER = re.compile(rb"\xff[^\x00\xff]")
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\x01\xd0-\xd7]")  # not those without contents


def examine_jpeg(content: bytes) -> Structure:
    """Examine a JPEG file. Raises `ToolkitError` if a limit is exceeded or an unusual coding is used."""
    frame, start = _read_header(content)
    kind, place = frame
    height, width = int.from_bytes(content[place + 1 : place + 3]), int.from_bytes(content[place + 3 : place + 5])
    components = content[place + 5]
    require(
        width > 0 and height > 0 and 1 <= components <= 4,
        f"it has {width} x {height} pixels in {components} components",
    )
    scans = _count_scans(content, start)
    limit = min(_MAX_SCANS, max(12, _MAX_SCANNED_PIXELS // (width * height)))
    require(scans <= limit, f"it has {scans} scans or more, and {limit} are the limit for its size")
    several = kind == _PROGRESSIVE or scans > 1  # then the decoder keeps all coefficients, 16 bits each
    return Structure("JPEG", width, height, width * height * (4 + 2 * components if several else 8))


def _read_header(content: bytes) -> tuple[tuple[int, int], int]:
    """Return the frame header's marker and the position of its contents, and the position of the first scan."""
    frame = None
    place, segments, padding, exif = 2, 0, 0, 0
    while True:
        marker_at = _skip_to_marker(content, place)
        padding += marker_at - 1 - place
        require(padding <= _MAX_PADDING, f"it has more than {_MAX_PADDING:,} bytes between its segments")
        marker, place = content[marker_at], marker_at + 1
        if marker == _SOS:
            if frame is None:
                refuse("its pixels come before its size")
            return frame, marker_at - 1
        if marker in _RESTARTS:
            continue
        length = int.from_bytes(content[place : place + 2])
        require(length >= 2 and place + length <= len(content), "a segment lies beyond the end of the file")
        segments += 1
        require(segments <= _MAX_SEGMENTS, f"it has more than {_MAX_SEGMENTS:,} segments before its pixels")
        require(place + length <= _MAX_SEGMENT_BYTES, f"its header has more than {_MAX_SEGMENT_BYTES:,} bytes")
        body = place + 2
        if marker in _FRAMES:
            require(frame is None and length >= 11, "it has several frame headers, or a damaged one")
            frame = marker, body
        elif marker in _APPLICATION:
            exif += _check_application(content[body : place + length])
            require(exif <= _MAX_EXIF_BYTES, f"its EXIF block has more than {_MAX_EXIF_BYTES:,} bytes")
        elif marker not in _TABLES:
            refuse(f"it has a segment of the kind {marker:#x} (arithmetic, lossless or hierarchical coding?)")
        place += length


def _skip_to_marker(content: bytes, place: int) -> int:
    """Return the position of the next marker's second byte; skip padding and escaped bytes."""
    found = _ANY_MARKER.search(content, place, place + _MAX_PADDING + 2)
    if found is None:
        refuse(f"its pixels do not begin, or more than {_MAX_PADDING:,} bytes lie between its segments")
    return found.end() - 1


def _check_application(body: bytes) -> int:
    """Check the metadata that Pillow reads when it opens the file; return the bytes of EXIF in it."""
    if body.startswith(b"Exif\0\0"):
        check_cost(body)
        return len(body)
    if body.startswith(b"MPF\0"):
        check_cost(body[4:])
    return 0


def _count_scans(content: bytes, place: int) -> int:
    """The number of scans up to the end of the image, or the first number above the limit."""
    scans = 0
    while scans <= _MAX_SCANS and (found := _NEXT_MARKER.search(content, place)):
        marker, place = content[found.start() + 1], found.end()
        if marker == _EOI:
            break
        scans += marker == _SOS
        place += max(int.from_bytes(content[place : place + 2]), 2)
    return scans
