"""Read the fields of a protobuf message, and reject a malformed message."""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which ONNX does not use

_CONTINUED = bytes(range(0x80, 0x100))  # bytes of a varint after which it continues


class Damaged(ValueError):
    """Not a protobuf message of the expected kind; the message says why."""


def read_fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield number, wire type and value of each field: an unsigned number, or the bytes of a `BYTES` field.

    Raises:
        Damaged: a field that does not end, an unknown wire type, or a field number above 2**29.
    """
    position, end = 0, len(data)
    while position < end:
        key = data[position]
        position += 1
        if key >= 0x80:
            key, position = _read_varint(data, position - 1)
        number, kind = key >> 3, key & 7
        value: int | memoryview
        if kind == VARINT:
            value, position = _read_varint(data, position)
        elif kind == BYTES:
            size, start = _read_varint(data, position)
            position = start + size
            value = data[start:position]
        elif kind in (FIXED32, FIXED64):
            start, position = position, position + (4 if kind == FIXED32 else 8)
            value = int.from_bytes(data[start:position], "little")
        else:
            raise Damaged(f"damaged: protobuf wire type {kind}")
        if key >= 2**32:
            raise Damaged("damaged: a field number is too large")
        if position > end:
            raise Damaged("damaged: a field is longer than the file")
        yield number, kind, value


def signed(value: int) -> int:
    """Convert the unsigned varint of an int64 field to the signed number that it encodes."""
    return value - 2**64 if value >= 2**63 else value


def count_varints(data: memoryview) -> int:
    """The number of values in a packed field of numbers."""
    return len(bytes(data).translate(None, _CONTINUED))


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the unsigned 64-bit number at `position`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise Damaged("damaged: it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise Damaged("damaged: a number that does not end")
