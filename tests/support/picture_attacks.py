"""Picture files built to cost much time or memory: few bytes, or many small parts."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(width: int = 32, height: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), "teal")


# PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, bits: int = 8, color: int = 2, rows: bytes = b"", more: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# JPEG


def jpeg_with(segments: bytes, image: Image.Image | None = None) -> bytes:
    """Segments between the start of a JPEG file and its own first segment."""
    content = encoded(image or plain(), "JPEG")
    return content[:2] + segments + content[2:]


def with_rubbish(rubbish: bytes) -> bytes:
    """Rubbish between the first and the second segment, which decoders pass over."""
    content = encoded(plain(), "JPEG")
    return content[:20] + rubbish + content[20:]


def segment(marker: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with_scans(count: int, side: int = 256, *, before: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encoded(plain(side, side), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + (before + content[last:-2]) * count + content[-2:]


def directory(entries: list[tuple[int, int, int, int]], *, offset: int = 8) -> bytes:
    """A little-endian TIFF header, and one directory of (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, offset) + struct.pack("<H", len(entries)) + body + bytes(4)


def shared_values(tags: int = 60_000) -> bytes:
    """A directory whose every tag has the whole block for its value."""
    size = 8 + 2 + 12 * tags + 4
    return directory([(number + 1, 7, size, 0) for number in range(tags)])


# TIFF


def tiff(width: int, height: int, changes: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A gray TIFF with one strip behind its directory; `changes` replaces tags by (type, count, value)."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1),
            278: (4, 1, height)}  # fmt: skip
    place = 8 + 2 + 12 * (len({**tags, 273: 0, 279: 0, **changes})) + 4
    tags |= {273: (4, 1, place), 279: (4, 1, max(1, len(data)))} | changes
    return directory([(tag, *tags[tag]) for tag in sorted(tags)]) + data


def tiff_of_strips(count: int) -> bytes:
    """One row and one column a strip; all strips are the same byte."""
    place = 8 + 2 + 12 * 9 + 4
    changes = {273: (4, count, place), 279: (4, count, place + 4 * count), 278: (4, 1, 1)}
    return tiff(1, count, changes, struct.pack("<I", 8) * count + struct.pack("<I", 1) * count)


# Others


def ico(side: int) -> bytes:
    """A 32 x 32 icon that holds a PNG of `side` x `side`."""
    inner = png(side, side, bits=1, color=0, rows=bytes((side // 8 + 1) * side))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(inner), 22) + inner


def gif_with(before_the_frame: bytes) -> bytes:
    content = encoded(plain().convert("P"), "GIF")
    place = 13 + (3 << (content[10] & 7) + 1)
    return content[:place] + before_the_frame + content[place:]


def gif_of_a_large_frame(side: int) -> bytes:
    screen = struct.pack("<6sHHBBB", b"GIF89a", 32, 32, 0, 0, 0)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x08\x01\x00\x00;"


def fits() -> bytes:
    cards = [b"SIMPLE  =                    T", b"BITPIX  =                    8", b"NAXIS   =                    2"]
    return gzip.compress(b"".join(card.ljust(80) for card in cards).ljust(2880) + bytes(2**20))


def webp_of_canvas(side: int) -> bytes:
    size = struct.pack("<I", side - 1)[:3]
    inner = encoded(plain(), "WEBP", lossless=True)[12:]
    body = b"VP8X" + struct.pack("<II", 10, 0) + size + size + inner
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp_of_runs(side: int) -> bytes:
    header = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078) + struct.pack(
        "<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0
    )
    return header + bytes(1024) + b"\xff\x07" * (side * side // 255 + 1)


def avif_of(width: int, height: int, content: bytes | None = None) -> bytes:
    """An AVIF file whose property declares another size than its pixels have."""
    content = content or encoded(plain(), "AVIF")
    place = content.index(b"ispe") + 8
    return content[:place] + struct.pack(">II", width, height) + content[place + 8 :]


def _avif_location(content: bytes, item: int) -> int:
    """The place of the offset and length of an item's data, as libavif writes `iloc`."""
    return content.index(b"iloc") + 12 + 14 * (item - 1) + 6


def avif_data(content: bytes, item: int = 1) -> bytes:
    offset, length = struct.unpack_from(">II", content, _avif_location(content, item))
    return content[offset : offset + length]


def with_avif_data(content: bytes, data: bytes, item: int = 1) -> bytes:
    """Replace the AV1 data of an item: 1 is the color, 2 the alpha."""
    place = _avif_location(content, item)
    location = struct.pack(">II", len(content) + 8, len(data))
    return content[:place] + location + content[place + 8 :] + struct.pack(">I4s", len(data) + 8, b"mdat") + data


def lying_avif(item: int = 1, side: int = 2000) -> bytes:
    """An AVIF file of 40 x 40 pixels, but the color or the alpha has many more."""
    large = encoded(plain(side, side), "AVIF", speed=10)
    return with_avif_data(encoded(noise(40, 40, 4), "AVIF"), avif_data(large), item)


def lying_avif_animation() -> bytes:
    """As `lying_avif`, but in the track: the image beside it has the declared size."""
    large = encoded(plain(2000, 2000), "AVIF", speed=10, save_all=True, append_images=[plain(2000, 2000)])
    return with_avif_data(avif_of(40, 40, large), avif_data(encoded(plain(40, 40), "AVIF")))


def avif_in_pieces(content: bytes) -> bytes:
    """An AVIF file of one item, whose data is cut in the middle of its sequence header."""
    place = _avif_location(content, 1) - 2
    offset, length = struct.unpack_from(">II", content, place + 2)
    pieces = struct.pack(">HIIII", 2, offset + 8, 6, offset + 14, length - 6)
    content = content[:place] + pieces + content[place + 10 :]
    for box in (b"iloc", b"meta"):
        start = content.index(box) - 4
        size = int.from_bytes(content[start : start + 4]) + 8
        content = content[:start] + struct.pack(">I", size) + content[start + 4 :]
    return content


def avif_of_frames(count: int) -> bytes:
    content = encoded(plain(), "AVIF")
    return with_avif_data(content, avif_data(content) * count)


def avif_without_header() -> bytes:
    content = encoded(plain(), "AVIF")
    data = avif_data(content)  # temporal delimiter, sequence header, frame
    return with_avif_data(content, data[4 + data[3] :])


# name -> the file, and words of the message that refuses it
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "JPEG: 333,000 EXIF segments": (lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(20)) * 333_000), "segments"),
    "JPEG: 20 MB of empty segments": (lambda: jpeg_with(segment(0xE3) * 5_000_000), "segments"),
    "JPEG: EXIF in many large segments": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 400), "EXIF block has more than"),
    "JPEG: 20 MB of padding": (lambda: with_rubbish(b"\xff" * 20_000_000), "between its segments"),
    "JPEG: 20 MB of rubbish": (lambda: with_rubbish(bytes(20_000_000)), "between its segments"),
    "JPEG: segments inside one without a length for Pillow": (
        lambda: jpeg_with(segment(0xCC, segment(0xE3) * 10_000)), "a segment of the kind 0xcc"),
    "JPEG: EXIF tags that share their values": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + shared_values(5_000))), "larger than the file"),
    "JPEG: MPF tags that share their values": (
        lambda: jpeg_with(segment(0xE2, b"MPF\0" + shared_values(5_000))), "larger than the file"),
    "JPEG: 5,000 scans": (lambda: jpeg_with_scans(5000), "scans"),
    "JPEG: scans behind one that is skipped": (
        lambda: jpeg_with_scans(5000, before=b"\xff\x01"), "scans"),
    "PNG: 60,000 x 60,000": (lambda: png(60_000, 60_000, bits=1, color=0, rows=bytes(10**6)), "pixels; the limit is"),
    "PNG: 16 bits of RGBA, 11,000 x 11,000": (lambda: png(11_000, 11_000, bits=16, color=6), "of 4 x 16 bits"),
    "PNG: a million empty chunks": (lambda: png(32, 32, more=chunk(b"prIv", b"") * 10**6), "chunks"),
    "PNG: a million empty chunks of pixels": (
        lambda: png(32, 32, rows=bytes(97 * 31), more=chunk(b"IDAT", b"") * 10**6), "chunks"),
    "PNG: 10,000 packed texts": (
        lambda: png(32, 32, more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) * 10_000), "chunks"),
    "PNG: EXIF tags that share their values": (
        lambda: png(32, 32, more=chunk(b"eXIf", shared_values())), "larger than the file"),
    "PNG: a second header": (
        lambda: png(32, 32, more=chunk(b"IHDR", struct.pack(">IIBBBBB", 9999, 9999, 8, 2, 0, 0, 0))), "headers"),
    "TIFF: a million strips": (lambda: tiff_of_strips(10**6), "values"),
    "TIFF: 100,000 strips": (lambda: tiff_of_strips(10**5), "strips or tiles"),
    "TIFF: tags that share their values": (
        lambda: shared_values().replace(bytes(4), b"\1\0\0\0", 0), "larger than the file"),
    "TIFF: a tile of 131,072 x 131,072": (
        lambda: tiff(32, 32, {322: (4, 1, 2**17), 323: (4, 1, 2**17), 324: (4, 1, 8), 325: (4, 1, 8), 273: (4, 0, 0),
                              259: (3, 1, 8)}), "both strips and tiles"),
    "TIFF: LZMA": (lambda: tiff(32, 32, {259: (3, 1, 34925)}), "compression has the number 34925"),
    "TIFF: compressed strips that overlap": (
        lambda: tiff(32, 32, {259: (3, 1, 8), 278: (4, 1, 16), 273: (4, 2, 8), 279: (4, 2, 8)}, bytes(100)),
        "overlap"),
    "GIF: comments of 20 MB": (
        lambda: gif_with(b"!\xfe" + (b"\xff" + bytes(255)) * 80_000 + b"\0"), "before its first frame"),
    "GIF: a frame larger than the screen": (lambda: gif_of_a_large_frame(60_000), "pixels; the limit is"),
    "WebP: a canvas of 16,383 x 16,383": (lambda: webp_of_canvas(16_383), "pixels; the limit is"),
    "WebP: a canvas of 10,000 x 10,000": (lambda: webp_of_canvas(10_000), "bytes; the limit is"),
    "BMP: runs of 11,000 x 11,000": (lambda: bmp_of_runs(11_000), "take too long"),
    "PPM: 11,000 x 11,000 as text": (lambda: b"P3 11000 11000 255\n" + b"1 " * 10**6, "take too long"),
    "PPM: an unusual number of levels": (lambda: b"P6 11000 11000 99\n" + bytes(10**6), "take too long"),
    "PPM: 65,536 levels in color": (lambda: b"P6 11000 11000 65535\n" + bytes(10**6), "take too long"),
    "PPM: 20 MB of blanks": (lambda: b"P6" + b" " * 20_000_000 + b"1 1 255\nabc", "header"),
    "PPM: comments in the text": (lambda: b"P3 1000 1000 255\n" + b"#\n" * 10**6, "comments"),
    "AVIF: 60,000 x 60,000": (lambda: avif_of(60_000, 60_000), "pixels; the limit is"),
    "AVIF: color of 2,000 x 2,000 in 40 x 40": (lying_avif, "2000 x 2000 pixels, and it declares 40 x 40"),
    "AVIF: alpha of 2,000 x 2,000 in 40 x 40": (lambda: lying_avif(2), "2000 x 2000 pixels, and it declares 40 x 40"),
    "AVIF: frames of 2,000 x 2,000 in 40 x 40": (lying_avif_animation, "2000 x 2000 pixels, and it declares 40 x 40"),
    "AVIF: data in two pieces": (
        lambda: avif_in_pieces(avif_of(16, 16, encoded(plain(64, 64), "AVIF"))), "64 x 64 pixels, and it declares 16"),
    "AVIF: 50 frames in one": (lambda: avif_of_frames(50), "51,200 pixels in total"),
    "AVIF: 5,000 frames in one": (lambda: avif_of_frames(5000), "more than 256 units"),
    "AVIF: a frame before its header": (avif_without_header, "its pixels come before its size"),
    "AVIF: data beyond the end": (lambda: encoded(plain(), "AVIF")[:-1], "beyond the end of the file"),
    "ICO: a PNG of 13,300 x 13,300": (lambda: ico(13_300), "ICO files are not decoded; convert"),
    "FITS, gzipped": (fits, "not a picture in a known format"),
    "FITS": (lambda: gzip.decompress(fits()), "FITS files are not decoded; convert"),
    "XPM": (lambda: b"/* XPM */\nstatic char *x[] = {\n", "XPM files are not decoded; convert"),
    "DDS": (lambda: b"DDS " + bytes(124), "DDS files are not decoded; convert"),
    "QOI": (lambda: b"qoif" + struct.pack(">IIBB", 11_000, 11_000, 3, 0), "QOI files are not decoded; convert"),
}  # fmt: skip


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))
