"""The ONNX file: which one is meant, and its bytes, read whole and without following anything that they point to."""

import os
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import display, open_regular

# Twenty times the largest network of this toolkit in float32; a model of this size still opens in seconds.
MAX_MODEL_BYTES = 64 * 2**20

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "weights" / "model.onnx"

# The parts of an ONNX file (onnx.proto) on the way to its tensors: message -> field number -> message in that field.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA = ("tensor", 13)  # the name and place of the file that holds its values
_OPERATOR = ("node", 4)

# What the networks of this toolkit compute with. Others can fill the memory while the file is being opened.
# fmt: off
OPERATORS = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div",
    "Flatten", "Gemm", "GlobalAveragePool", "Identity", "MatMul", "Mul", "QuantizeLinear", "ReduceMean", "Relu",
    "Reshape", "Shape", "Softmax", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})
# fmt: on

_MAX_FIELDS = 100_000  # the largest network here has a tenth of that


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
    """The contents of the ONNX file at `path`, looked through before anything opens it as a model.

    Raises:
        ToolkitError: it is no ordinary file or too large for a model of this toolkit, or it keeps weights in other
            files, which could be any file of this computer, or computes with what no network of this toolkit has.
    """
    with open_regular(path, max_bytes=MAX_MODEL_BYTES) as file:
        content = file.read(MAX_MODEL_BYTES)
    if objection := _objection(content):
        raise ToolkitError(f"{display(path)}: {objection}")
    return content


def _objection(content: bytes) -> str | None:
    """Why ONNX Runtime must not see the file. Given external data, it would read those from the current folder."""
    foreign = None
    try:
        for place, value in _fields_of_parts(content):
            if place == _EXTERNAL_DATA:
                return (
                    "keeps weights outside the file (ONNX external data); a model is one file here: "
                    "export it again, or save it with its weights inside"
                )
            if place == _OPERATOR and (name := bytes(value[:80]).decode("utf-8", "replace")) not in OPERATORS:
                foreign = foreign or f"computes with the operator {display(name)}"
            if _PARTS[place[0]].get(place[1]) == "sparse":
                foreign = foreign or "holds a sparse tensor"
    except ValueError as error:
        return f"is not a model that ONNX Runtime can open ({error}); `cifar export` writes such files"
    return foreign and f"{foreign}, which no model of this toolkit does; `cifar export` writes such models"


def _fields_of_parts(content: bytes) -> Iterator[tuple[tuple[str, int], memoryview]]:
    """Every field of the file's parts, wherever they are: its message and number, and its contents."""
    remaining, count = [("model", memoryview(content))], 0
    while remaining:
        message, data = remaining.pop()
        for number, value in _fields(data):
            count += 1
            if count > _MAX_FIELDS:
                raise ValueError(f"it has more than {_MAX_FIELDS:,} parts")
            if part := _PARTS[message].get(number):
                remaining.append((part, value))
            yield (message, number), value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message: their numbers and contents, which are empty where the field is a number.

    What other readers might understand in another way is refused: numbers of fields that do not fit, and groups.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        size = 0
        if kind == 2:
            size, position = _varint(data, position)
        elif kind == 0:
            _, position = _varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"damaged: protobuf wire type {kind}")
        if key >= 2**32 or position + size > len(data):
            raise ValueError("damaged: a field is longer than the file")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position == len(data):
            raise ValueError("damaged: it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("damaged: a number that does not end")
