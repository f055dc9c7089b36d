"""Examine picture files before they are decoded: format, size in pixels, and memory for decoding.

Only the formats in `FORMATS` are accepted. Headers are read up to the pixels of the first frame, with limits on
everything that costs a decoder time or memory: segments, chunks, scans, strips, metadata. Decoding an accepted file
takes at most about ten seconds and `MAX_MEMORY`. Only the decoder detects damage in the compressed pixels.
"""

import re
import struct
from collections.abc import Callable

from toolkit.errors import ToolkitError
from toolkit.inference.avif_structure import BRANDS as AVIF_BRANDS
from toolkit.inference.avif_structure import examine_avif
from toolkit.inference.ifd import check_cost
from toolkit.inference.jpeg_structure import examine_jpeg
from toolkit.inference.structure import Structure, refuse, require
from toolkit.inference.tiff_structure import examine_tiff

# Suffixes of each format, by the name that Pillow gives it.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}

# Formats that are recognized only to name them in the error message. Their decoders are slow, start other programs, or
# have not been reviewed.
_OTHERS = {
    b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF", b"\0\0\1\0": "ICO", b"\0\0\2\0": "CUR",
    b"icns": "ICNS", b"qoif": "QOI", b"DDS ": "DDS", b"8BPS": "PSD", b"SIMPLE  =": "FITS", b"/* XPM */": "XPM",
    b"#define": "XBM", b"\x01\xda": "SGI", b"\x0a\x05\x01": "PCX", b"\xd7\xcd\xc6\x9a": "WMF", b"<svg": "SVG",
    b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"\x59\xa6\x6a\x95": "SUN raster", b"P7": "PAM", b"BLP": "BLP", b"FTEX": "FTEX",
}  # fmt: skip

# Chunks, extensions and other metadata before the pixels.
_MAX_CHUNKS = 2**17  # PNG files of 108 megapixels have about forty thousand
_MAX_OTHER_CHUNKS = 2**14
_MAX_METADATA_BYTES = 32 * 2**20
_MAX_COMPRESSED_TEXTS = 256  # Pillow unpacks each to a megabyte at most
_MAX_GIF_METADATA_BYTES = 2**20
_MAX_PPM_HEADER_BYTES = 2**12

# Bytes of unpacked rows: 16 bits of four channels take twice the time of 8 bits.
_MAX_PNG_BYTES = 2**29

# Pillow decodes these in Python: run-length encoded BMP, PPM as text, and PPM with an unusual maximum value.
_SLOW_PIXELS = 2**20
_MAX_SLOW_BYTES = 16 * 2**20


def examine(content: bytes) -> Structure:
    """Examine a picture file, without decoding it.

    Raises:
        ToolkitError: an unknown format, a damaged file, or an exceeded limit; the message does not name the file.
    """
    for magic, examine_format in _EXAMINERS.items():
        if content.startswith(magic):
            return examine_format(content)
    if content[4:8] == b"ftyp" and content[8:12] in AVIF_BRANDS:
        return examine_avif(content)
    for magic, name in _OTHERS.items():
        if content.startswith(magic):
            raise ToolkitError(f"{name} files are not decoded; convert the picture to PNG or JPEG")
    raise ToolkitError(f"not a picture in a known format ({', '.join(FORMATS)}); convert it to PNG or JPEG")


def _examine_png(content: bytes) -> Structure:
    """W3C PNG, third edition, section 5."""
    require(content[12:16] == b"IHDR" and len(content) >= 33, "it does not begin with its header")
    width, height, bits, color = struct.unpack_from(">IIBB", content, 16)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 4)
    row_bytes = (width * channels * bits + 7) // 8
    place, chunks, others, other_bytes, compressed = 33, 0, 0, 0, 0
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunks += 1
        if kind == b"IEND":
            break
        if kind not in (b"IDAT", b"fdAT"):
            others, other_bytes = others + 1, other_bytes + length
            compressed += kind in (b"zTXt", b"iTXt", b"iCCP")
            require(kind != b"IHDR", "it has several headers")
            require(others <= _MAX_OTHER_CHUNKS and compressed <= _MAX_COMPRESSED_TEXTS, "it has too many chunks")
            require(other_bytes <= _MAX_METADATA_BYTES, f"it has more than {_MAX_METADATA_BYTES:,} bytes of metadata")
            if kind == b"eXIf":
                check_cost(content[place + 8 : place + 8 + length])
        place += 12 + length
        if chunks > _MAX_CHUNKS:
            refuse(f"it has more than {_MAX_CHUNKS:,} chunks")
    require(row_bytes * height <= _MAX_PNG_BYTES, f"it has {width} x {height} pixels of {channels} x {bits} bits")
    return Structure("PNG", width, height, width * height * 8)


def _examine_gif(content: bytes) -> Structure:
    """GIF89a, up to the first frame, which may be larger than the screen that the header declares."""
    require(len(content) >= 13, "it ends in its header")
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    start = place = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while content[place : place + 1] == b"!":
        place += 2
        while place < len(content) and content[place]:
            place += 1 + content[place]
            require(place - start <= _MAX_GIF_METADATA_BYTES, "it has too many bytes before its first frame")
        place += 1
        require(place - start <= _MAX_GIF_METADATA_BYTES, "it has too many bytes before its first frame")
    require(content[place : place + 1] == b"," and place + 10 <= len(content), "it has no frame")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", content, place + 1)
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    return Structure("GIF", width, height, width * height * 8)


def _examine_bmp(content: bytes) -> Structure:
    os2 = content[14:18] == b"\x0c\0\0\0"
    require(len(content) >= (26 if os2 else 54), "it ends in its header")
    if os2:
        width, height = struct.unpack_from("<HH", content, 18)
        compression = 0
    else:
        width, signed, compression = struct.unpack_from("<Ii4xI", content, 18)
        height = abs(signed)  # negative: from top to bottom
    if compression in (1, 2):
        _require_small(content, width, height)
    return Structure("BMP", width, height, width * height * 8)


_BLANK = rb"(?:\s|#[^\r\n]*[\r\n])"
_PPM_HEADER = re.compile(rb"P([1-6f])\s%b*(\d{1,10})\s%b*(\d{1,10})\s(?:%b*([-+.\deE]{1,10})\s)?" % ((_BLANK,) * 3))


def _examine_ppm(content: bytes) -> Structure:
    """Examine a Netpbm file, P1 to P6 or Pf. The size is followed by another number, except in P1 and P4."""
    header = _PPM_HEADER.match(content[:_MAX_PPM_HEADER_BYTES])
    if header is None:
        refuse(f"its header is damaged, or has more than {_MAX_PPM_HEADER_BYTES:,} bytes")
    kind, width, height = header[1], int(header[2]), int(header[3])
    fast = kind in b"4f" or header[4] == b"255" or (kind, header[4]) == (b"5", b"65535")  # Pillow decodes in C
    if kind in b"123" or not fast:
        _require_small(content, width, height)
        require(content.count(b"#") <= 1000, "it has more than 1,000 comments")
    return Structure("PPM", width, height, width * height * 8)


def _require_small(content: bytes, width: int, height: int) -> None:
    require(width * height <= _SLOW_PIXELS, f"{width} x {height} pixels in this form take too long")
    require(len(content) <= _MAX_SLOW_BYTES, f"{len(content):,} bytes in this form take too long")


def _examine_webp(content: bytes) -> Structure:
    """Examine the canvas size; libwebp rejects larger frames. It keeps two canvases, and Pillow keeps two copies."""
    kind, head = content[12:16], content[20:30]
    require(content[8:12] == b"WEBP" and len(head) == 10, "it is damaged")
    if kind == b"VP8X":
        width, height = int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        require(kind == b"VP8 ", "it has no picture")
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", head, 6))
    place, chunks = 12, 0
    while place + 8 <= len(content):
        chunks += 1
        require(chunks <= _MAX_OTHER_CHUNKS, f"it has more than {_MAX_OTHER_CHUNKS:,} chunks")
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + length + (length & 1)
    return Structure("WEBP", width, height, width * height * 16)


_EXAMINERS: dict[bytes, Callable[[bytes], Structure]] = {
    b"\x89PNG\r\n\x1a\n": _examine_png,
    b"\xff\xd8\xff": examine_jpeg,
    b"RIFF": _examine_webp,
    b"GIF8": _examine_gif,
    b"BM": _examine_bmp,
    **dict.fromkeys((b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0"), examine_tiff),
    **dict.fromkeys((b"P%c" % letter for letter in b"123456f"), _examine_ppm),
}
