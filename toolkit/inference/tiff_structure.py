"""The structure of TIFF files (TIFF 6.0): compression, strips and tiles of the first picture."""

from toolkit.inference.ifd import Directory, check_inner, read_directory
from toolkit.inference.structure import Structure, refuse, require

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SAMPLES, _ROWS, _PLANAR = 277, 278, 284
_STRIP_OFFSETS, _STRIP_BYTES = 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325

_UNCOMPRESSED = 1
# CCITT, LZW, JPEG, Deflate (two numbers), PackBits. LZMA's header may ask for any amount of memory.
_COMPRESSIONS = {_UNCOMPRESSED, 2, 3, 4, 5, 7, 8, 32946, 32773}

_MAX_PARTS = 2**16  # strips or tiles
_MAX_SIDE = 2**17  # fax decoders keep a list of the runs of a row


def examine_tiff(content: bytes) -> Structure:
    """Examine a TIFF file. Raises `ToolkitError` if a limit is exceeded or the compression is unusual."""
    directory = read_directory(content)
    if directory is None:
        refuse("it has no directory")
    check_inner(directory)
    width, height = directory.integer(_WIDTH, 0), directory.integer(_HEIGHT, 0)
    require(0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE, f"it has {width} x {height} pixels")
    compression = directory.integer(_COMPRESSION, _UNCOMPRESSED)
    require(compression in _COMPRESSIONS, f"its compression has the number {compression}")
    part_width, part_height = _part_size(directory, width, height)
    samples = directory.integer(_SAMPLES, 1)
    planes = samples if directory.integer(_PLANAR, 1) == 2 else 1
    require(1 <= samples <= 6, f"it has {samples} values a pixel")  # as Pillow
    parts = -(-width // part_width) * -(-height // part_height) * planes
    _check_parts(directory, parts, compressed=compression != _UNCOMPRESSED)
    bits = max(directory.integers(_BITS), default=1)
    require(bits <= 64, f"it has {bits} bits a value")
    part_bytes = part_width * part_height * (samples * bits // planes + 7) // 8
    part_pixels = part_width * part_height
    memory = width * height * 4 + max(width * height * 4, part_bytes + 4 * part_pixels)
    return Structure("TIFF", width, height, memory)


def _part_size(directory: Directory, width: int, height: int) -> tuple[int, int]:
    """The width and height of a strip or a tile, in pixels."""
    if _TILE_OFFSETS in directory.entries:
        size = directory.integer(_TILE_WIDTH, 0), directory.integer(_TILE_HEIGHT, 0)
        require(0 < size[0] <= 2 * _MAX_SIDE and 0 < size[1] <= 2 * _MAX_SIDE, "its tiles have no size")
        require(_STRIP_OFFSETS not in directory.entries, "it has both strips and tiles")
        return size
    return width, max(1, min(directory.integer(_ROWS, height), height))


def _check_parts(directory: Directory, parts: int, *, compressed: bool) -> None:
    """Reject too many parts, and compressed parts that share bytes, because each part is decompressed separately."""
    tiled = _TILE_OFFSETS in directory.entries
    offsets = directory.integers(_TILE_OFFSETS if tiled else _STRIP_OFFSETS)
    require(parts <= _MAX_PARTS and len(offsets) <= _MAX_PARTS, f"it has more than {_MAX_PARTS:,} strips or tiles")
    if compressed:
        sizes = directory.integers(_TILE_BYTES if tiled else _STRIP_BYTES)
        require(len(sizes) == len(offsets) == parts and min(sizes) > 0, "the sizes of its strips or tiles are missing")
        require(sum(sizes) <= len(directory.content), "its strips or tiles overlap")
