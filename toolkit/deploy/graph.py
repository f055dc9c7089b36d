"""Inspect an ONNX graph without running it (validity, interface, precision), and remove its unneeded fields."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, ValueInfoProto

from toolkit import __version__
from toolkit.errors import first_line

IMAGES, PICTURE, LOGITS, PROBABILITIES = "images", "picture", "logits", "probabilities"
BATCH = "batch"

STANDARD_DOMAINS = ("", "ai.onnx")  # two names of one

InputFormat = Literal["uint8-nhwc", "float-nchw", "picture"]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Input:
    """The only input of a graph, and the first dimension of its outputs."""

    name: str
    elem_type: int
    shape: tuple[str | int, ...]
    rows: str | int


INPUTS: dict[InputFormat, Input] = {
    "uint8-nhwc": Input(IMAGES, TensorProto.UINT8, (BATCH, 32, 32, 3), BATCH),
    "float-nchw": Input(IMAGES, TensorProto.FLOAT, (BATCH, 3, 32, 32), BATCH),
    "picture": Input(PICTURE, TensorProto.UINT8, ("height", "width", 3), 1),
}


def parse(content: bytes) -> ModelProto | None:
    """Parse a model; None if `content` is not a protobuf message of that type."""
    try:
        return onnx.load_model_from_string(content)
    except DecodeError:
        return None


def find_invalid(content: bytes) -> str | None:
    """Return the first error of `onnx.checker` with full shape inference, None for a valid model.

    Only after `model_file.find_fault`: the checker reads external data from the disk.
    """
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:  # the checker and shape inference raise errors of several kinds
        return first_line(error)
    return None


def read_opset(model: ModelProto) -> int:
    """The version of the standard operators; 0 if the model names none."""
    return next((item.version for item in model.opset_import if item.domain in STANDARD_DOMAINS), 0)


def detect_input_format(model: ModelProto) -> InputFormat | None:
    """Detect the input format: "picture" by the input's name, others by its element type; None if unknown."""
    if len(model.graph.input) != 1:
        return None
    value = model.graph.input[0]
    if value.name == PICTURE:
        return "picture"
    elem_type = value.type.tensor_type.elem_type
    return next((name for name, known in INPUTS.items() if known.elem_type == elem_type), None)


def describe_interface(model: ModelProto) -> str:
    """Names, element types and shapes of all inputs and outputs, in one line."""
    return _join(map(_describe_value, model.graph.input), map(_describe_value, model.graph.output))


def required_interface(input_format: InputFormat, *, classes: int) -> str:
    """Return the line that `describe_interface` returns for a valid model."""
    known = INPUTS[input_format]
    outputs = [_describe(name, TensorProto.FLOAT, (known.rows, classes)) for name in (LOGITS, PROBABILITIES)]
    return _join([_describe(known.name, known.elem_type, known.shape)], outputs)


def detect_precision(model: ModelProto) -> Precision:
    """Detect the precision of the convolutions and the linear layer from the graph, not from the metadata.

    "int8" if the input and the weights of every such layer come from DequantizeLinear, "fp16" if the weights of every
    one are float16, else "fp32": with any layer in float32, the tolerances of float32 apply to the whole model.
    """
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    if layers and all(producers.get(name) == "DequantizeLinear" for node in layers for name in node.input[:2]):
        return "int8"
    if layers and all(dtypes.get(node.input[1]) == TensorProto.FLOAT16 for node in layers):
        return "fp16"
    return "fp32"


def strip(model: ModelProto) -> ModelProto:
    """Remove doc strings, stack traces, inferred shapes and metadata from `model` in place, and return it.

    The exporter records the source line of each node, which would disclose local paths.
    """
    content = model.graph
    for part in [model, content, *content.input, *content.output, *content.initializer, *content.node]:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    del content.value_info[:]
    del content.quantization_annotation[:]
    content.name = "cifar"
    model.producer_name, model.producer_version = "cifar", __version__
    model.ClearField("domain")
    used = {node.domain for node in content.node}
    kept = [item for item in model.opset_import if item.domain in STANDARD_DOMAINS or item.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def _describe_value(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim)
    return _describe(value.name, tensor.elem_type, shape)


def _describe(name: str, elem_type: int, shape: tuple[str | int, ...]) -> str:
    known = elem_type in TensorProto.DataType.values()
    dtype = TensorProto.DataType.Name(elem_type).lower() if known else f"type {elem_type}"
    return f"{name} {'float32' if dtype == 'float' else dtype} ({', '.join(map(str, shape))})"


def _join(inputs: Iterable[str], outputs: Iterable[str]) -> str:
    return f"{', '.join(inputs) or 'nothing'} -> {', '.join(outputs) or 'nothing'}"
