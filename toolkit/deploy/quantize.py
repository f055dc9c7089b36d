"""Lower precisions: convert a float32 graph to float16, or to int8 by calibration on training images.

Preprocessing and softmax stay in float32: they cost next to nothing, and rounded pixels would add to the error of every
layer.
"""

import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from toolkit.data.images import Images
from toolkit.deploy import graph
from toolkit.deploy.graph import InputFormat, strip
from toolkit.deploy.quiet import quiet
from toolkit.errors import UsageError
from toolkit.inference.session import to_input

Target = Literal["cpu", "gpu"]
Method = Literal["minmax", "entropy", "percentile"]

CALIBRATION_COUNT = 512  # training images; 128 were as good
CALIBRATION_SEED = 0
CALIBRATION_BATCH = 64

# How the range of an activation is computed from the calibration images.
CALIBRATION_METHODS: dict[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# On validation images, over five draws of calibration images (results/calibration.json), the methods are equally
# accurate; percentile has the largest logit difference, and entropy ends at the same ranges as minmax.
CALIBRATION_METHOD: Method = "minmax"

# Unsigned fits the output of a ReLU and is fastest in CPU kernels; TensorRT takes signed and symmetric only.
ACTIVATION_TYPES: dict[Target, QuantType] = {"cpu": QuantType.QUInt8, "gpu": QuantType.QInt8}

# Every operator between the first convolution and the logits. A ReLU is absorbed by the range of its output.
QUANTIZED = ["Conv", "Relu", "Add", "AveragePool", "Reshape", "Gemm"]


def to_fp16(model: ModelProto) -> ModelProto:
    """Copy a float32 graph and convert its network to float16; inputs and outputs keep their types.

    ONNX Runtime's converter is unsuitable: it also rounds values between two nodes that must stay in float32.
    """
    copy = ModelProto.FromString(model.SerializeToString())
    before = _preprocessing(copy)
    after = [node for node in copy.graph.node if node.op_type == "Softmax"]
    network = list(copy.graph.node)[len(before) : -len(after)]
    entering, leaving = before[-1].output[0], graph.LOGITS
    for node in network:
        node.input[:] = [_half(name) if name == entering else name for name in node.input]
        node.output[:] = [_half(name) if name == leaving else name for name in node.output]
    used = {name for node in network for name in node.input}
    for tensor in copy.graph.initializer:
        if tensor.name in used and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    narrow = helper.make_node("Cast", [entering], [_half(entering)], name="to_float16", to=TensorProto.FLOAT16)
    widen = helper.make_node("Cast", [_half(leaving)], [leaving], name="to_float32", to=TensorProto.FLOAT)
    nodes = [*before, narrow, *network, widen, *after]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return strip(copy)


def to_int8(
    model: ModelProto,
    images: NDArray[np.uint8],
    *,
    target: Target = "cpu",
    method: Method = CALIBRATION_METHOD,
    reduce_range: bool | None = None,
) -> tuple[ModelProto, dict[str, Any]]:
    """Quantize a float32 graph to int8: static, in QDQ format, with per-channel weights.

    Args:
        model: from `export_graph`.
        images: uint8 (N, 32, 32, 3): training images, for the ranges of the activations.
        target: "cpu" (uint8 activations) or "gpu" (int8 activations, symmetric, float biases: TensorRT's form).
        method: one of `CALIBRATION_METHODS`.
        reduce_range: weights of 7 bits instead of 8; by default for the CPU alone.

    Returns:
        The quantized graph, and the calibration settings for its metadata.

    Raises:
        UsageError: an unknown target or method.
    """
    for name, value, valid in [("target", target, get_args(Target)), ("method", method, get_args(Method))]:
        if value not in valid:
            raise UsageError(f"unknown {name} {value!r}: valid are {', '.join(valid)}")
    # The logits stay in float: 256 steps would turn near logits into ties.
    options: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": ["Gemm"]}
    if target == "gpu":
        options |= {"ActivationSymmetric": True, "QuantizeBias": False}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "int8.onnx"
        quantize_static(
            ModelProto.FromString(model.SerializeToString()),
            output,
            _Batches(images, graph.detect_input_format(model) or "uint8-nhwc"),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=[node.name for node in _preprocessing(model)],
            per_channel=True,
            # Processors without VNNI add two products in 16 bits, which can overflow with 8-bit weights only.
            reduce_range=target == "cpu" if reduce_range is None else reduce_range,
            activation_type=ACTIVATION_TYPES[target],
            weight_type=QuantType.QInt8,
            calibrate_method=CALIBRATION_METHODS[method],
            extra_options=options,
        )
        quantized = onnx.load(output)
    _widen_preprocessing(quantized)
    settings = {"method": method, "images": len(images), "seed": CALIBRATION_SEED, "target": target}
    return strip(quantized), settings


def detect_target(model: ModelProto) -> Target:
    """The hardware that an int8 graph was quantized for, by the type of its activations."""
    points = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    signed = any(tensor.name in points and tensor.data_type == TensorProto.INT8 for tensor in model.graph.initializer)
    return "gpu" if signed else "cpu"


def choose_calibration_images(
    train: Images, *, count: int = CALIBRATION_COUNT, seed: int = CALIBRATION_SEED
) -> NDArray[np.uint8]:
    """Choose at most `count` training images by `seed`: uint8 (count, 32, 32, 3)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train), generator=generator)[:count]
    images: NDArray[np.uint8] = train.images[chosen].permute(0, 2, 3, 1).contiguous().numpy()
    return images


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The calibration images in the model's input format, batch by batch."""

    def __init__(self, images: NDArray[np.uint8], input_format: InputFormat) -> None:
        self.feeds = to_input(images, input_format)
        self.start = 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = self.feeds[self.start : self.start + CALIBRATION_BATCH]
        self.start += CALIBRATION_BATCH
        return {graph.IMAGES: batch} if len(batch) else None


def _preprocessing(model: ModelProto) -> list[NodeProto]:
    """The nodes before the first convolution; nodes are in the order of execution."""
    return list(takewhile(lambda node: node.op_type != "Conv", model.graph.node))


def _widen_preprocessing(model: ModelProto) -> None:
    """Expand scale and shift of the three channels to a row of pixels, (1, 3, 1, 1) -> (1, 3, 1, 32).

    They are the only float operations before the logits. ONNX Runtime runs quantized convolutions on (N, 32, 32, 3),
    where broadcasting three values at a time took 7% of the model's time; 96 at a time take next to nothing.
    """
    used = {name for node in _preprocessing(model) for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in used and list(tensor.dims) == [1, 3, 1, 1]:
            row = np.broadcast_to(numpy_helper.to_array(tensor), (1, 3, 1, 32))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(row), tensor.name))


def _half(name: str) -> str:
    """The name of a tensor in float16."""
    return f"{name}_float16"
