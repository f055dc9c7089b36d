"""The structure of AVIF files (ISO/IEC 14496-12 and 23008-12): declared sizes, and those of the coded frames.

libavif decodes as many pixels as the coded data holds, and then scales them to the declared size.
"""

import re
import struct
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from toolkit.inference.av1_stream import CodedFrames, measure_frames
from toolkit.inference.ifd import check_cost
from toolkit.inference.structure import Structure, require

BRANDS = {b"avif", b"avis", b"mif1", b"msf1"}

_MAX_BOXES = 2**14
_MAX_EXTENTS = 2**14  # pieces of the data of images
_MAX_ITEMS = 1024  # that are coded: tiles of grids
_MAX_TRACKS = 4
_MAX_EXIF_BLOCKS = 8

_TIFF_HEADER = re.compile(rb"II\x2a\0|MM\0\x2a|MM\x2a\0|II\0\x2a|II\x2b\0|MM\0\x2b")
_SIZE_PROPERTY = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)

# Alpha, thumbnails and the padding of tiles add pixels to those of the picture.
_MAX_CODED_SHARE = 8

# Bytes per pixel: two copies of four bytes in Pillow; in the decoder up to six, and six more for film grain.
_DECLARED_BYTES, _CODED_BYTES = 8, 13


def examine_avif(content: bytes) -> Structure:
    """Examine an AVIF file: its size is the largest declared one. Raises `ToolkitError` if coded frames are larger."""
    sizes = [struct.unpack(">II", found[1]) for found in _SIZE_PROPERTY.finditer(content)]
    require(0 < len(sizes) <= _MAX_BOXES, "it does not say its size")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    for number, found in enumerate(_TIFF_HEADER.finditer(content)):
        require(number < _MAX_EXIF_BLOCKS, "it has several EXIF blocks")
        check_cost(content[found.start() :])
    declared = (width + 7 & ~7) * (height + 7 & ~7)  # encoders may round up
    coded = 0
    for frames in _read_frames(memoryview(content)):
        require(
            frames.width * frames.height <= declared,
            f"its coded data has {frames.width} x {frames.height} pixels, and it declares {width} x {height}",
        )
        coded += frames.pixels
    require(coded > 0, "it has no image")
    require(
        coded <= _MAX_CODED_SHARE * declared, f"its coded data has {coded:,} pixels in total, too many for its size"
    )
    return Structure("AVIF", width, height, width * height * _DECLARED_BYTES + coded * _CODED_BYTES)


def _read_frames(content: memoryview) -> list[CodedFrames]:
    """Return the frames of all images or of all tracks, whichever have more pixels: only one group is decoded."""
    contents = _children(content, {b"meta", b"moov"}, refused={b"mini"}, top=True)
    items = [measure_frames(data) for data in _coded_items(content, contents.get(b"meta"))]
    tracks = [measure_frames(data) for data in _first_samples(content, contents.get(b"moov"))]
    return max(items, tracks, key=lambda found: sum(frames.pixels for frames in found))


def _boxes(data: memoryview, *, top: bool = False) -> Iterator[tuple[bytes, memoryview]]:
    """The type and the contents of each box (ISO/IEC 14496-12, section 4.2.2)."""
    place = boxes = 0
    while place < len(data):
        boxes += 1
        require(boxes <= _MAX_BOXES, f"it has more than {_MAX_BOXES:,} boxes")
        head = _Fields(data[place:])
        size, kind = head.number(4), bytes(head.take(4))
        if size == 1:
            size = head.number(8)
        elif size == 0 and top:
            size = len(data) - place
        require(head.place <= size <= len(data) - place, "a box lies beyond the end of the file")
        yield kind, data[place + head.place : place + size]
        place += size


def _children(
    data: memoryview, kinds: Set[bytes], *, refused: Set[bytes] = frozenset(), top: bool = False
) -> dict[bytes, memoryview]:
    """Return the boxes of the types `kinds`; each type may occur only once."""
    found = {}
    for kind, body in _boxes(data, top=top):
        if kind in kinds:
            require(kind not in found, f"it has several boxes of the type {kind.decode()}")
            found[kind] = body
        require(kind not in refused, "its header is of the minimized form")
    return found


class _Fields:
    """Reads the fields of a box one after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.place = 0

    def take(self, size: int) -> memoryview:
        require(size <= len(self._data) - self.place, "a box ends too early")
        self.place += size
        return self._data[self.place - size : self.place]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))


# Images


@dataclass(frozen=True)
class _Location:
    """Where the data of an item is: in the file or in the box `idat`; offset and length of each piece."""

    in_idat: bool
    extents: list[tuple[int, int]] = field(default_factory=list)


def _coded_items(content: memoryview, meta: memoryview | None) -> Iterator[memoryview]:
    """The data of each item that is coded as AV1: color, alpha, the tiles of a grid, thumbnails."""
    if meta is None:
        return
    boxes = _children(meta[4:], {b"iinf", b"iloc", b"idat"})
    if b"iinf" not in boxes or b"iloc" not in boxes:
        return
    coded = _coded_identifiers(boxes[b"iinf"])
    joined_bytes = 0
    for identifier, location in _read_locations(boxes[b"iloc"]):
        if identifier in coded and location.extents:
            whole = boxes.get(b"idat", content[:0]) if location.in_idat else content
            pieces = [whole[offset : offset + length] for offset, length in location.extents]
            complete = all(len(piece) == length for piece, (_, length) in zip(pieces, location.extents, strict=True))
            require(complete, "an image lies beyond the end of the file")
            if len(pieces) > 1:
                joined_bytes += sum(len(piece) for piece in pieces)
                require(joined_bytes <= len(content), "the pieces of its images overlap")
            yield pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))


def _coded_identifiers(iinf: memoryview) -> set[int]:
    """The items whose type is `av01` (section 8.11.6)."""
    coded = set()
    for kind, body in _boxes(iinf[8 if any(iinf[:1]) else 6 :]):
        if kind == b"infe":
            fields = _Fields(body)
            version = fields.number(4) >> 24
            identifier = fields.number(4 if version == 3 else 2)
            fields.take(2)
            if bytes(fields.take(4)) == b"av01":
                coded.add(identifier)
    require(len(coded) <= _MAX_ITEMS, f"it has more than {_MAX_ITEMS:,} images")
    return coded


def _read_locations(iloc: memoryview) -> Iterator[tuple[int, _Location]]:
    """Identifier and location of each item (section 8.11.3)."""
    fields = _Fields(iloc)
    version = fields.number(4) >> 24
    sizes = fields.number(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    count = fields.number(4 if version == 2 else 2)
    require(count <= _MAX_EXTENTS, f"it has more than {_MAX_EXTENTS:,} items")
    extents = 0
    for _ in range(count):
        identifier = fields.number(4 if version == 2 else 2)
        location = _Location(in_idat=bool(version and fields.number(2) & 15))
        fields.take(2)
        base = fields.number(base_size)
        count_of_item = fields.number(2)
        extents += count_of_item
        require(extents <= _MAX_EXTENTS, f"its images have more than {_MAX_EXTENTS:,} pieces")
        for _ in range(count_of_item):
            fields.take(index_size if version else 0)
            location.extents.append((base + fields.number(offset_size), fields.number(length_size)))
        yield identifier, location


# Tracks, of an animation


def _first_samples(content: memoryview, moov: memoryview | None) -> Iterator[memoryview]:
    """The data of the first frame of each track: color and alpha."""
    if moov is None:
        return
    tracks = [body for kind, body in _boxes(moov) if kind == b"trak"]
    require(len(tracks) <= _MAX_TRACKS, f"it has more than {_MAX_TRACKS} tracks")
    for track in tracks:
        for kind in (b"mdia", b"minf", b"stbl"):
            track = _children(track, {kind}).get(kind, content[:0])
        table = _children(track, {b"stsz", b"stco", b"co64"})
        require(len(table) == 2 and b"stsz" in table, "the places of its frames are missing")
        sizes = _Fields(table[b"stsz"])
        sizes.take(4)
        size, count = sizes.number(4), sizes.number(4)
        size = size or sizes.number(4)
        width = 4 if b"stco" in table else 8
        chunks = _Fields(table[b"stco" if b"stco" in table else b"co64"])
        chunks.take(4)
        require(count > 0 and chunks.number(4) > 0, "it has no frames")
        offset = chunks.number(width)
        require(offset + size <= len(content), "a frame lies beyond the end of the file")
        yield content[offset : offset + size]
