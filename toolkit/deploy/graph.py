"""The ONNX file itself, read without running it: valid, whole in one file, and with the interface agreed on."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, ValueInfoProto

from toolkit import __version__
from toolkit.errors import ToolkitError
from toolkit.inference.model_file import OPERATORS

# The largest network here is 2.8 MB in float32. Nothing above this is read, so a file cannot fill the memory.
MAX_BYTES = 64 * 2**20

IMAGES, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
BATCH = "batch"

# The inputs by name: element type and shape.
INPUTS: dict[str, tuple[int, tuple[str | int, ...]]] = {
    "uint8-nhwc": (TensorProto.UINT8, (BATCH, 32, 32, 3)),
    "float-nchw": (TensorProto.FLOAT, (BATCH, 3, 32, 32)),
}

PRECISIONS = ("fp32", "fp16", "int8")

STANDARD_DOMAINS = ("", "ai.onnx")


def read_model(path: Path) -> bytes:
    """The bytes of the file, but never more than `MAX_BYTES + 1` of them.

    Raises:
        ToolkitError: there is no regular file, or it cannot be read.
    """
    if not path.is_file():
        found = "it is not a regular file" if path.exists() else "there is no such file"
        raise ToolkitError(f"no model at {path}: {found}; `cifar export {path}` makes one from a run")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ToolkitError(f"cannot read {path}: {error.strerror or error}") from error


def parse(content: bytes) -> ModelProto | None:
    """The model, not yet checked; None where `content` is not even a protobuf message of that kind."""
    try:
        return onnx.load_model_from_string(content)
    except DecodeError:
        return None


def fault(content: bytes) -> str | None:
    """What `onnx.checker` has against the model, with the shapes that it infers; None where it is valid.

    To be asked after `surprises`: the checker looks for external data on the disk.
    """
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:  # the checker and shape inference raise errors of several kinds
        return (str(error).strip() or type(error).__name__).split("\n")[0]
    return None


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators; 0 where the model does not say."""
    return next((item.version for item in model.opset_import if item.domain in STANDARD_DOMAINS), 0)


def surprises(model: ModelProto) -> list[str]:
    """What a network of this toolkit never has: anything outside the file, and any code that hides from the checks."""
    found = [f"domain {item.domain}" for item in model.opset_import if item.domain not in STANDARD_DOMAINS]
    found += [f"function {function.name}" for function in model.functions]
    found += ["training graph"] * len(model.training_info)
    found += [f"sparse tensor {item.values.name}" for item in model.graph.sparse_initializer]
    for node in model.graph.node:
        if node.domain not in STANDARD_DOMAINS or node.op_type not in OPERATORS:
            found.append(f"operator {node.domain + '.' if node.domain else ''}{node.op_type}")
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            found.append(f"subgraph in {node.op_type}")
        if any(a.HasField("sparse_tensor") or a.sparse_tensors for a in node.attribute):
            found.append(f"sparse tensor in {node.op_type}")
    found += [
        f"external data of {tensor.name or 'a constant'}"
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
    ]
    keys = [item.key for item in model.metadata_props]
    found += [f"metadata key {key} twice" for key in sorted(set(keys)) if keys.count(key) > 1]
    return found


def input_kind(model: ModelProto) -> str | None:
    """Which of `INPUTS` the model has, by the element type of its one input; None where it is neither."""
    if len(model.graph.input) != 1:
        return None
    elem_type = model.graph.input[0].type.tensor_type.elem_type
    return next((kind for kind, (known, _) in INPUTS.items() if known == elem_type), None)


def interface(model: ModelProto) -> str:
    """Names, element types and shapes of all inputs and outputs, in one line."""
    return _one_line(map(_value, model.graph.input), map(_value, model.graph.output))


def agreed_interface(kind: str, *, classes: int) -> str:
    """The line that `interface` gives for a model that keeps the contract."""
    elem_type, shape = INPUTS[kind]
    outputs = [_described(name, TensorProto.FLOAT, (BATCH, classes)) for name in (LOGITS, PROBABILITIES)]
    return _one_line([_described(IMAGES, elem_type, shape)], outputs)


def precision_of(model: ModelProto) -> str:
    """The precision, one of `PRECISIONS`, by what the graph holds and not by what the metadata says."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return "int8"
    if any(tensor.data_type == TensorProto.FLOAT16 for tensor in _tensors(model)):
        return "fp16"
    return "fp32"


def lean(model: ModelProto) -> ModelProto:
    """`model` itself, stripped of all that no runtime needs: notes, stack traces, inferred shapes, metadata.

    The exporter notes the source line of each node, which would publish the paths of the machine.
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


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the graph itself holds; those in subgraphs do not matter, for a subgraph is a surprise."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _value(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim)
    return _described(value.name, tensor.elem_type, shape)


def _described(name: str, elem_type: int, shape: tuple[str | int, ...]) -> str:
    known = elem_type in TensorProto.DataType.values()
    dtype = TensorProto.DataType.Name(elem_type).lower() if known else f"type {elem_type}"
    return f"{name} {'float32' if dtype == 'float' else dtype} ({', '.join(map(str, shape))})"


def _one_line(inputs: Iterator[str] | list[str], outputs: Iterator[str] | list[str]) -> str:
    return f"{', '.join(inputs) or 'nothing'} -> {', '.join(outputs) or 'nothing'}"
