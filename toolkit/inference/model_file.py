"""The ONNX file: which one is meant, and its bytes, read whole and without following anything that they point to."""

import os
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.inference.names import display
from toolkit.inference.regular_file import open_regular

# Twenty times the largest network of this toolkit in float32; a model of this size still opens in seconds.
MAX_MODEL_BYTES = 64 * 2**20

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "weights" / "model.onnx"

# The parts of an ONNX file (onnx.proto) on the way to its tensors: message -> field number -> message in that field.
_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA = 13  # in a tensor: the name and place of the file that holds its values


def find_model(option: str | os.PathLike[str] | None = None) -> Path:
    """The model that is meant: `option`, else `$CIFAR_MODEL`, else `model.onnx` here, else the one that is shipped.

    What was asked for by name is returned as it is, whether or not it exists: opening it says what is wrong.

    Raises:
        ToolkitError: nothing was asked for, and there is neither a `model.onnx` here nor a shipped model.
    """
    named = option or os.environ.get("CIFAR_MODEL")
    if named:
        return Path(named)
    for candidate in (Path("model.onnx"), SHIPPED_MODEL):
        if candidate.exists():
            return candidate
    raise ToolkitError(
        "no model: $CIFAR_MODEL is not set, there is no model.onnx in this folder, and none is shipped with this copy "
        "of the toolkit; make one with `cifar export model.onnx`, or name one with --model"
    )


def read_model(path: str | os.PathLike[str]) -> bytes:
    """The contents of the ONNX file at `path`.

    Raises:
        ToolkitError: it is no ordinary file or too large for a model of this toolkit, or it keeps weights in other
            files: those could be any file of this computer.
    """
    with open_regular(path, max_bytes=MAX_MODEL_BYTES) as file:
        content = file.read(MAX_MODEL_BYTES)
    if _points_outside(content):
        raise ToolkitError(
            f"{display(path)}: keeps weights outside the file (ONNX external data); a model is one file here: "
            "export it again, or save it with its weights inside"
        )
    return content


def _points_outside(content: bytes) -> bool:
    """Whether a tensor anywhere in the file has external data. Given bytes, ONNX Runtime reads those from here."""
    if b"location" not in content:  # the key that each of them must carry
        return False
    remaining = [("model", memoryview(content))]
    while remaining:
        message, data = remaining.pop()
        try:
            for number, value in _fields(data):
                if message == "tensor":
                    if number == _EXTERNAL_DATA:
                        return True
                elif number in _PARTS[message]:
                    remaining.append((_PARTS[message][number], value))
        except (IndexError, ValueError):  # no protobuf from here on: ONNX Runtime will refuse the file
            continue
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a protobuf message: their numbers and contents. Others hold no messages."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == 2:
            size, position = _varint(data, position)
            yield number, data[position : position + size]
            position += size
        elif kind == 0:
            _, position = _varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"protobuf wire type {kind}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("overlong varint")
