"""The ONNX file: find it, read it once, and reject contents that no network of this toolkit has."""

import os
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import display, open_regular, quote

# Twenty times the largest network of this toolkit in float32; a model of this size still opens in seconds.
MAX_MODEL_BYTES = 64 * 2**20

METADATA_PREFIX = "cifar."

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "weights" / "model.onnx"

# The messages of an ONNX file (onnx.proto) that are scanned: message -> field number -> message in that field.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 14: "property", 20: "training", 25: "function"},
    "opset": {},
    "property": {},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
# Features that would let a file read other files, or hide computations from the checks.
_DISALLOWED = {
    ("tensor", 13): "weights outside the file (ONNX external data)",
    ("model", 20): "a training graph",
    ("model", 25): "a function",
    ("attribute", 6): "a subgraph",
    ("attribute", 11): "a subgraph",
    ("graph", 15): "a sparse tensor",
    ("attribute", 22): "a sparse tensor",
    ("attribute", 23): "a sparse tensor",
}
_DOMAINS = {("opset", 1), ("node", 7)}
_OPERATOR = ("node", 4)
_PROPERTY_KEY = ("property", 1)

STANDARD_DOMAINS = ("", "ai.onnx")

# The operators of the exported networks. Others can fill the memory while the file is being opened.
# fmt: off
OPERATORS = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div",
    "Flatten", "Gemm", "GlobalAveragePool", "Identity", "MatMul", "Mul", "QuantizeLinear", "ReduceMean", "Relu",
    "Reshape", "Shape", "Softmax", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})
# fmt: on
# Of the picture rule inside a graph (`toolkit.inference.picture_nodes`), where each occurs once.
PICTURE_OPERATORS = frozenset({"ReduceMin", "Resize", "Slice"})

_MAX_FIELDS = 100_000  # the largest network here has a tenth of that


def find_model(option: str | os.PathLike[str] | None = None) -> Path:
    """Return `option`, else `$CIFAR_MODEL`, else `./model.onnx`, else the shipped model.

    A named file is returned whether or not it exists; opening it reports what is wrong.

    Raises:
        ToolkitError: no file was named, and there is neither `./model.onnx` nor a shipped model.
    """
    named = option or os.environ.get("CIFAR_MODEL")
    if named:
        return Path(named)
    for candidate in (Path("model.onnx"), SHIPPED_MODEL):
        if candidate.exists():
            return candidate
    raise ToolkitError(
        "no model: $CIFAR_MODEL is not set, there is no model.onnx in this folder, and this copy of the toolkit ships "
        "none; create one with `cifar export model.onnx`, or name one with --model"
    )


def read_model(path: str | os.PathLike[str]) -> bytes:
    """Read the ONNX file at `path` and check its contents before anything opens it as a model.

    Raises:
        ToolkitError: not a regular file, larger than `MAX_MODEL_BYTES`, or with contents that `find_fault` names.
    """
    content = read_model_bytes(path)
    if fault := find_fault(content):
        raise ToolkitError(f"{display(path)}: {fault}; `cifar export` writes suitable files")
    return content


def read_model_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read the file without looking at its contents.

    Raises:
        ToolkitError: not a regular file, larger than `MAX_MODEL_BYTES`, or a checkpoint.
    """
    with open_regular(path, max_bytes=MAX_MODEL_BYTES) as file:
        content = file.read(MAX_MODEL_BYTES)
    if content.startswith(b"PK") and zipfile.is_zipfile(BytesIO(content)):
        raise ToolkitError(
            f"{display(path)}: is a checkpoint, not an ONNX file; export it first, with `cifar export model.onnx "
            f"--checkpoint {display(path)}`"
        )
    return content


def find_fault(content: bytes) -> str | None:
    """Return why a file is not a model of this toolkit, None if nothing was found.

    ONNX Runtime and onnx.checker must not see a file with a fault: both would read external data from any file.
    """
    properties: set[bytes] = set()
    picture_operators: set[str] = set()
    fault: str | None = None
    try:
        for place, value in _fields_of_parts(content):
            if place == _PROPERTY_KEY:
                if bytes(value) in properties:
                    return f"has the metadata key {_text(value)} twice"
                properties.add(bytes(value))
            elif place == _OPERATOR and (name := _text(value)) not in OPERATORS:
                if name not in PICTURE_OPERATORS:
                    fault = fault or f"contains the operator {name}, which no model of this toolkit has"
                elif name in picture_operators:
                    fault = fault or f"contains the operator {name} twice, which no model of this toolkit does"
                picture_operators.add(name)
            elif place in _DOMAINS and _text(value) not in STANDARD_DOMAINS:
                fault = fault or f"uses the operator domain {_text(value)}, which no model of this toolkit does"
            elif feature := _DISALLOWED.get(place):
                fault = fault or f"contains {feature}, which no model of this toolkit does"
    except ValueError as error:
        return f"is not a model that ONNX Runtime can open ({error})"
    return fault


def _text(value: bytes | memoryview) -> str:
    return quote(bytes(value[:80]).decode("utf-8", "replace"))[1:-1]


def _fields_of_parts(content: bytes) -> Iterator[tuple[tuple[str, int], memoryview]]:
    """Yield message, number and contents of every field of the scanned messages, wherever they are."""
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
    """Yield number and contents of the fields of a protobuf message; the contents of numbers are empty.

    Raises:
        ValueError: damaged, or with encodings that other readers might understand differently, such as groups.
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
