"""Read an ONNX file into plain values, in one pass that accepts only the fields which `cifar export` writes.

Each message of the format (onnx.proto) has a table of its allowed fields: the wire type, the largest number of
occurrences, and the function that reads the field. Any other field is rejected when it is read, so a file cannot hold
functions, subgraphs, sparse tensors, external data, intermediate shapes or documentation strings. Field names and
numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.

The classes are named tuples: defining dataclasses takes five times as long, which delays every `cifar predict`.
"""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from toolkit.files import quote
from toolkit.inference.picture_nodes import AttributeValue
from toolkit.inference.protobuf import BYTES, FIXED32, VARINT, Damaged, count_varints, read_fields, signed

# Element types (TensorProto.DataType) of the exported networks.
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16 = 1, 2, 3, 6, 7, 10
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, FLOAT16: 2}

OPSETS = range(18, 22)  # tested with ONNX Runtime 1.23 and later
IR_VERSIONS = range(8, 14)  # 8 came with opset 18; before 4, initializers were inputs too

METADATA_PREFIX = "cifar."

# The metadata keys that a model may have, without their prefix, and the largest number of characters of each.
# `class_names` holds at most 1,000 names, as JSON.
METADATA_LENGTHS = {
    "calibration": 1_024,
    "checkpoint_sha256": 64,
    "class_names": 262_144,
    "data": 4_096,
    "date": 32,
    "input": 32,
    "min_accuracy": 32,
    "model": 128,
    "parity_differing_labels": 32,
    "parity_max_logit_difference": 32,
    "precision": 32,
    "recipe": 16_384,
    "runtimes": 256,
    "test_accuracy": 32,
    "test_correct": 32,
    "test_images": 32,
    "test_sha256": 64,
    "toolkit_version": 64,
    "val_accuracy": 32,
}

MAX_NODES = 1_024  # the largest network in int8 has 285
MAX_INITIALIZERS = 1_024  # the same network has 266
MAX_NAME = 200  # bytes of UTF-8
MAX_RANK = 4
MAX_SIZE = 65_536  # of a dimension


class Fault(ValueError):
    """The file has contents that `cifar export` never writes; the message follows the file's name in a sentence."""


class Tensor(NamedTuple):
    """A constant of the graph.

    Attributes:
        name: unique in the graph.
        dtype: one of the element types above.
        shape: each dimension is at least 1.
        integers: the values of an int64 vector of at most `MAX_RANK` elements, such as a shape; else empty.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    integers: tuple[int, ...]


class Node(NamedTuple):
    """One operation of the standard domain with one output."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, AttributeValue]


class Interface(NamedTuple):
    """An input or output of the graph; a dimension that the caller chooses is a name."""

    name: str
    dtype: int
    shape: tuple[int | str, ...]


class Graph(NamedTuple):
    """The computation, nodes in the order of execution."""

    nodes: tuple[Node, ...]
    initializers: tuple[Tensor, ...]
    inputs: tuple[Interface, ...]
    outputs: tuple[Interface, ...]


def read_graph(content: bytes) -> Graph:
    """Read the graph of an ONNX file.

    Raises:
        Damaged: not an ONNX file, or not all of it.
        Fault: contents that `cifar export` does not write.
    """
    model = _read("model", memoryview(content))
    for required in ("ir_version", "graph", "opset_import"):
        if required not in model:
            raise Damaged(f"it has no {required}")
    keys = [key for key, _ in model.get("metadata_props", ())]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise Fault(f"has the metadata key {repeated} twice")
    graph: Graph = model["graph"]
    return graph


class _Field(NamedTuple):
    """An allowed field: its name, wire type, reader, and largest number in a message (1: not a list)."""

    name: str
    kind: int
    read: Callable[[Any], Any]
    most: int = 1


def _read(message: str, data: memoryview) -> dict[str, Any]:
    """Read a message: field name -> value, or list of values for a field that may be repeated."""
    admitted, found = _MESSAGES[message], dict[str, Any]()
    for number, kind, value in read_fields(data):
        field = admitted.get(number)
        if field is None or field.kind != kind:
            _reject_field(message, number, field)
        name, _, read, most = field
        item = read(value)
        if most == 1:
            if name in found:
                raise Fault(f"has two values for {name} in its {message}, where `cifar export` writes one")
            found[name] = item
        else:
            items = found.setdefault(name, [])
            if len(items) == most:
                raise Fault(f"has more than {most:,} of {name} in a {message}, the most that is allowed")
            items.append(item)
    return found


def _reject_field(message: str, number: int, field: _Field | None) -> NoReturn:
    if field:
        raise Damaged(f"damaged: {field.name} in its {message} has another type")
    feature = "notes (doc_string, metadata of a part)" if number in _NOTES.get(message, ()) else None
    if feature := feature or _DISALLOWED.get((message, number)):
        raise Fault(f"contains {feature}, which `cifar export` never writes")
    if message == "model":
        raise Damaged(f"it has a field {number}, which ONNX files do not have")
    raise Fault(f"has a field {number} in a {message}, which `cifar export` never writes")


# Readers of values


def _read_name(data: memoryview) -> str:
    return _read_text(data, limit=MAX_NAME)


def _read_text(data: memoryview, *, limit: int) -> str:
    if len(data) > limit:
        raise Fault(f"has a name or text of {len(data):,} bytes; at most {limit:,} are allowed")
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise Fault("has a name or text that is not valid UTF-8") from error
    if not text.isprintable():
        raise Fault(f"has the name or text {quote(text)}, which is not printable")
    return text


def _read_domain(data: memoryview) -> str:
    name = _read_name(data)
    if name:
        raise Fault(f"uses the operator domain {name}, which `cifar export` never writes")
    return name


def _read_opset_version(value: int) -> int:
    if value not in OPSETS:
        raise Fault(f"imports opset {value}; {OPSETS[0]} to {OPSETS[-1]} are allowed")
    return value


def _read_ir_version(value: int) -> int:
    if value not in IR_VERSIONS:
        raise Fault(f"has IR version {value}; {IR_VERSIONS[0]} to {IR_VERSIONS[-1]} are allowed")
    return value


def _read_size(value: int) -> int:
    if not 1 <= value <= MAX_SIZE:
        raise Fault(f"has a dimension of {signed(value):,}; 1 to {MAX_SIZE:,} are allowed")
    return value


def _read_dtype(value: int) -> int:
    if value not in ITEM_BYTES:
        raise Fault(f"has values of the element type {value}, which `cifar export` never writes")
    return value


def _read_float(value: int) -> float:
    number: float = struct.unpack("<f", value.to_bytes(4, "little"))[0]
    return number


def _return_unchanged(value: Any) -> Any:
    return value


# Readers of messages


def _read_opset(data: memoryview) -> int:
    version: int = _complete("opset", _read("opset", data), "version")["version"]
    return version


def _read_property(data: memoryview) -> tuple[str, str]:
    found = _complete("property", _read("property", data), "key", "value")
    key = found["key"]
    limit = METADATA_LENGTHS.get(key.removeprefix(METADATA_PREFIX)) if key.startswith(METADATA_PREFIX) else None
    if limit is None:
        raise Fault(f"has the metadata key {quote(key)}, which `cifar export` never writes")
    if len(found["value"]) > limit:
        raise Fault(f"has {len(found['value']):,} characters of metadata under {key}; at most {limit:,} are allowed")
    return key, found["value"]


def _read_tensor(data: memoryview) -> Tensor:
    """Read a tensor; check that it has exactly one data field, which fits its type and shape."""
    found = _complete("tensor", _read("tensor", data), "name", "data_type")
    name, dtype, shape = found["name"], found["data_type"], tuple(found.get("dims", ()))
    held = {
        "raw_data": len(found.get("raw_data", b"")) / ITEM_BYTES[dtype],
        "float_data": len(found.get("float_data", b"")) / ITEM_BYTES[FLOAT] if dtype == FLOAT else -1,
        "int32_data": count_varints(found.get("int32_data", memoryview(b""))) if dtype in (UINT8, INT8, INT32) else -1,
    }
    present = [held[field] for field in held if field in found]
    if present != [math.prod(shape)]:
        raise Fault(f"has a tensor {name} whose data do not fit its shape {_show(shape)} and type")
    integers: tuple[int, ...] = ()
    if dtype == INT64 and len(shape) == 1 and shape[0] <= MAX_RANK and "raw_data" in found:
        integers = struct.unpack(f"<{shape[0]}q", found["raw_data"])
    return Tensor(name, dtype, shape, integers)


def _read_attribute(data: memoryview) -> tuple[str, AttributeValue]:
    found = _complete("attribute", _read("attribute", data), "name", "type")
    field = _ATTRIBUTE_TYPES.get(found["type"])
    if field not in found or len(found) != 3:
        raise Fault(f"has an attribute {found['name']} whose value is not of its type")
    value = found[field]
    return found["name"], tuple(value) if isinstance(value, list) else value


def _read_node(data: memoryview) -> Node:
    found = _complete("node", _read("node", data), "op_type", "output")
    attributes = dict(found.get("attribute", ()))
    if len(attributes) < len(found.get("attribute", ())):
        raise Fault(f"has a node {found['op_type']} with two values for one attribute")
    return Node(found.get("name", ""), found["op_type"], tuple(found.get("input", ())), found["output"], attributes)


def _read_dimension(data: memoryview) -> int | str:
    found = _read("dimension", data)
    if len(found) != 1:
        raise Fault("has an input or output with a dimension of neither one size nor one name")
    size: int | str = next(iter(found.values()))
    return size


def _read_shape(data: memoryview) -> tuple[int | str, ...]:
    return tuple(_read("shape", data).get("dim", ()))


def _read_tensor_type(data: memoryview) -> tuple[int, tuple[int | str, ...]]:
    found = _complete("tensor type", _read("tensor type", data), "elem_type", "shape")
    return found["elem_type"], found["shape"]


def _read_type(data: memoryview) -> tuple[int, tuple[int | str, ...]]:
    kind: tuple[int, tuple[int | str, ...]] = _complete("type", _read("type", data), "tensor_type")["tensor_type"]
    return kind


def _read_interface(data: memoryview) -> Interface:
    found = _complete("value", _read("value", data), "name", "type")
    return Interface(found["name"], *found["type"])


def _read_graph(data: memoryview) -> Graph:
    found = _read("graph", data)
    return Graph(*(tuple(found.get(name, ())) for name in ("node", "initializer", "input", "output")))


def _complete(message: str, found: dict[str, Any], *required: str) -> dict[str, Any]:
    for name in required:
        if name not in found:
            raise Damaged(f"a {message} in it has no {name}")
    return found


def _show(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


_MESSAGES: dict[str, dict[int, _Field]] = {
    "model": {
        1: _Field("ir_version", VARINT, _read_ir_version),
        2: _Field("producer_name", BYTES, _read_name),
        3: _Field("producer_version", BYTES, _read_name),
        7: _Field("graph", BYTES, _read_graph),
        8: _Field("opset_import", BYTES, _read_opset),
        14: _Field("metadata_props", BYTES, _read_property, len(METADATA_LENGTHS) + 1),  # one more: named as repeated
    },
    "opset": {1: _Field("domain", BYTES, _read_domain), 2: _Field("version", VARINT, _read_opset_version)},
    "property": {
        1: _Field("key", BYTES, _read_name),
        2: _Field("value", BYTES, lambda data: _read_text(data, limit=max(METADATA_LENGTHS.values()))),
    },
    "graph": {
        1: _Field("node", BYTES, _read_node, MAX_NODES),
        2: _Field("name", BYTES, _read_name),
        5: _Field("initializer", BYTES, _read_tensor, MAX_INITIALIZERS),
        11: _Field("input", BYTES, _read_interface, 2),
        12: _Field("output", BYTES, _read_interface, 2),
    },
    "node": {
        1: _Field("input", BYTES, _read_name, 4),
        2: _Field("output", BYTES, _read_name),
        3: _Field("name", BYTES, _read_name),
        4: _Field("op_type", BYTES, _read_name),
        5: _Field("attribute", BYTES, _read_attribute, 8),
        7: _Field("domain", BYTES, _read_domain),
    },
    "attribute": {
        1: _Field("name", BYTES, _read_name),
        2: _Field("f", FIXED32, _read_float),
        3: _Field("i", VARINT, signed),
        4: _Field("s", BYTES, _read_name),
        8: _Field("ints", VARINT, signed, 8),
        20: _Field("type", VARINT, _return_unchanged),
    },
    "tensor": {
        1: _Field("dims", VARINT, _read_size, MAX_RANK),
        2: _Field("data_type", VARINT, _read_dtype),
        4: _Field("float_data", BYTES, _return_unchanged),
        5: _Field("int32_data", BYTES, _return_unchanged),
        8: _Field("name", BYTES, _read_name),
        9: _Field("raw_data", BYTES, _return_unchanged),
    },
    "value": {1: _Field("name", BYTES, _read_name), 2: _Field("type", BYTES, _read_type)},
    "type": {1: _Field("tensor_type", BYTES, _read_tensor_type)},
    "tensor type": {1: _Field("elem_type", VARINT, _read_dtype), 2: _Field("shape", BYTES, _read_shape)},
    "shape": {1: _Field("dim", BYTES, _read_dimension, MAX_RANK)},
    "dimension": {1: _Field("dim_value", VARINT, _read_size), 2: _Field("dim_param", BYTES, _read_name)},
}
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 7: "ints"}  # AttributeProto.AttributeType -> the field of its value

# Contents of disallowed fields, for error messages: (message, field number) -> contents.
_DISALLOWED = {
    ("model", 20): "a training graph",
    ("model", 25): "a function",
    ("graph", 13): "shapes of intermediate values (value_info)",
    ("graph", 14): "quantization annotations",
    ("graph", 15): "a sparse tensor",
    ("attribute", 5): "a tensor in an attribute",
    ("attribute", 6): "a subgraph",
    ("attribute", 10): "a tensor in an attribute",
    ("attribute", 11): "a subgraph",
    ("attribute", 22): "a sparse tensor",
    ("attribute", 23): "a sparse tensor",
    ("tensor", 13): "weights outside the file (ONNX external data)",
    ("tensor", 14): "weights outside the file (ONNX external data)",
    ("type", 8): "a sparse tensor",
}
_NOTES = {"model": (6,), "graph": (10, 16), "node": (6, 9), "tensor": (12, 16), "value": (3, 4)}  # message -> fields
