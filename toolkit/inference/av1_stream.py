"""The sizes of the frames in AV1 data (AV1 specification, section 5), read from its sequence headers."""

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.inference.structure import refuse, require

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6

# A still image has three or four units; every group of tiles may be one more.
_MAX_UNITS = 256

_MAX_HEADER_BYTES = 512  # 32 operating points take fewer


@dataclass(frozen=True)
class CodedFrames:
    """The frames that a decoder decodes from a piece of AV1 data.

    Attributes:
        width: the largest width in the sequence headers, in pixels.
        height: the largest height in the sequence headers, in pixels.
        pixels: upper bound of the total for all frames.
    """

    width: int
    height: int
    pixels: int


def measure_frames(data: memoryview) -> CodedFrames:
    """Read all sequence headers, and count the frames.

    Raises:
        ToolkitError: no sequence header precedes a frame, or the data is damaged or has too many units.
    """
    width = height = frame_pixels = pixels = 0
    for kind, body in _units(data):
        if kind == _SEQUENCE_HEADER:
            sequence_width, sequence_height, frame_pixels = _read_sequence_header(body)
            width, height = max(width, sequence_width), max(height, sequence_height)
        elif kind in (_FRAME_HEADER, _FRAME):
            require(frame_pixels > 0, "its pixels come before its size")
            pixels += frame_pixels
    require(pixels > 0, "it has no pixels")
    return CodedFrames(width, height, pixels)


def _units(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The type and the contents of each open bitstream unit (section 5.3)."""
    place = units = 0
    while place < len(data):
        units += 1
        require(units <= _MAX_UNITS, f"it has more than {_MAX_UNITS:,} units of coded data")
        head = data[place]
        place += 2 if head & 4 else 1  # with an extension
        length = len(data) - place
        if head & 2:
            length, place = _read_leb128(data, place)
        require(0 <= length <= len(data) - place, "its coded data is damaged")
        yield head >> 3 & 15, data[place : place + length]
        place += length


def _read_leb128(data: memoryview, place: int) -> tuple[int, int]:
    """The number at `place`, and the place after it (section 4.10.5)."""
    value = 0
    for index, byte in enumerate(data[place : place + 8]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, place + index + 1
    return refuse("its coded data is damaged")


class _Bits:
    """Reads unsigned numbers, the highest bit first."""

    def __init__(self, data: memoryview) -> None:
        content = bytes(data[:_MAX_HEADER_BYTES])
        self._number = int.from_bytes(content)
        self._left = 8 * len(content)

    def read(self, count: int) -> int:
        self._left -= count
        require(self._left >= 0, "its sequence header is damaged")
        return self._number >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        """A number of variable length (section 4.10.3)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        require(zeros < 32, "its sequence header is damaged")
        self.read(zeros)


def _read_sequence_header(body: memoryview) -> tuple[int, int, int]:
    """The largest width and height of a frame, and the largest number of pixels (section 5.5.1)."""
    bits = _Bits(body)
    bits.read(4)  # profile, still_picture
    reduced = bits.read(1)  # reduced_still_picture_header
    if reduced:
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    # Without the reduced header, a frame may declare another size, which dav1d does not compare with the largest size.
    return width, height, width * height if reduced else 1 << width_bits + height_bits


def _skip_operating_points(bits: _Bits) -> None:
    decoder_model = delay_bits = 0
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)
        if bits.read(1):  # equal_picture_interval
            bits.skip_uvlc()
        decoder_model = bits.read(1)
        if decoder_model:
            delay_bits = bits.read(5) + 1
            bits.read(42)
    display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # seq_level_idx
            bits.read(1)
        if decoder_model and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if display_delay and bits.read(1):
            bits.read(4)
