"""The operators that `cifar export` writes: allowed attributes, types and shapes, and the cost of each operator.

The inputs of an operator are constants and values whose first dimension is the batch. Each operator processes the
pictures of a batch independently: it does not read the batch size, move the batch dimension, or combine pictures. So
the outputs cannot depend on the batch size. There is no integer arithmetic.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from toolkit.inference.model_graph import (
    FLOAT,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    ITEM_BYTES,
    UINT8,
    Fault,
    Node,
)
from toolkit.inference.picture_nodes import AttributeValue

# Reading and writing one element takes about as long as this many multiply-accumulates of a convolution.
WORK_PER_ELEMENT = 8


class Value(NamedTuple):
    """A value of the graph.

    Attributes:
        dtype: its element type.
        shape: the full shape of a constant; for other values, the shape without the batch dimension.
        constant: whether the value is the same for all pictures.
        integers: see `model_graph.Tensor`.
    """

    dtype: int
    shape: tuple[int, ...]
    constant: bool = False
    integers: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]


class Operator(NamedTuple):
    """The allowed use of one operator, and its cost.

    Attributes:
        inputs: the allowed numbers of inputs.
        defaults: the allowed attributes and their default values.
        infer: computes the output from the inputs and attributes; raises `UnsupportedUse`.
        work: computes the multiply-accumulates for one picture, without `WORK_PER_ELEMENT` for each output element.
    """

    inputs: range
    defaults: Mapping[str, AttributeValue]
    infer: Callable[[Sequence[Value], Mapping[str, AttributeValue]], Value]
    work: Callable[[Sequence[Value], Value], int] = lambda inputs, output: 0


class UnsupportedUse(ValueError):
    """An operator with other attributes, types or shapes than those that `cifar export` writes."""


def infer_output(node: Node, inputs: Sequence[Value]) -> tuple[Value, int]:
    """Check one node; return its output and the multiply-accumulates that it takes for one picture.

    Raises:
        Fault: an unknown operator, or one with other attributes, types or shapes than `cifar export` writes.
    """
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        raise Fault(f"contains the operator {node.op_type}, which `cifar export` never writes")
    if unknown := [name for name in node.attributes if name not in operator.defaults]:
        raise Fault(f"has the attribute {unknown[0]} at {_describe(node)}, which `cifar export` never writes")
    try:
        _require(len(inputs) in operator.inputs, f"{len(inputs)} inputs")
        output = operator.infer(inputs, {**operator.defaults, **node.attributes})
    except UnsupportedUse as error:
        raise Fault(f"uses {_describe(node)} as `cifar export` never does: with {error}") from error
    return output, WORK_PER_ELEMENT * output.elements + operator.work(inputs, output)


def _describe(node: Node) -> str:
    return f"{node.op_type} (node {node.name or node.output})"


def _require(passed: bool, found: str) -> None:
    if not passed:
        raise UnsupportedUse(found)


def _require_attributes(attributes: Mapping[str, AttributeValue], **required: AttributeValue) -> None:
    for name, value in required.items():
        _require_one_of(attributes, name, value)


def _require_one_of(attributes: Mapping[str, AttributeValue], name: str, *admitted: AttributeValue) -> None:
    found = attributes[name]
    _require(found in admitted and type(found) is type(admitted[0]), f"{name} = {found}")


def _require_floats(*values: Value) -> None:
    dtypes = {value.dtype for value in values}
    _require(len(dtypes) == 1 and dtypes <= {FLOAT, FLOAT16}, "values of other types than float32 or float16")


def _require_pictures(value: Value, *, rank: int) -> None:
    found = "a constant" if value.constant else f"the shape {value.shape} of each picture"
    _require(not value.constant and len(value.shape) == rank, f"{found} for its input")


def _require_constants(*values: Value) -> None:
    _require(all(value.constant for value in values), "weights that are not constant")


# Layout and types


def _infer_transpose(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    (images,) = inputs
    _require_pictures(images, rank=3)
    _require_attributes(attributes, perm=(0, 3, 1, 2))
    height, width, channels = images.shape
    return Value(images.dtype, (channels, height, width))


def _infer_cast(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    (value,) = inputs
    _require(not value.constant, "a constant for its input")
    _require(value.dtype in (UINT8, FLOAT, FLOAT16), "an input of another type")
    _require_one_of(attributes, "to", FLOAT, FLOAT16)
    return Value(FLOAT if attributes["to"] == FLOAT else FLOAT16, value.shape)


def _infer_reshape(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    value, shape = inputs
    _require_pictures(value, rank=3)
    _require_one_of(attributes, "allowzero", 0, 1)
    _require(shape.constant and shape.dtype == INT64, "a shape that is computed")
    _require(shape.integers == (-1, value.elements), f"the shape {shape.integers}")
    return Value(value.dtype, (value.elements,))


# Elementwise


def _infer_elementwise(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    """Infer the output for two values of equal shape, or for a value and a constant that is broadcast to it."""
    _require_floats(*inputs)
    pictures = [value for value in inputs if not value.constant]
    _require(bool(pictures), "constants alone")
    output = pictures[0]
    for value in inputs:
        full = (1, *output.shape)  # with the batch
        sizes = zip(reversed(value.shape), reversed(full), strict=False)
        broadcast = len(value.shape) <= len(full) and all(size in (1, whole) for size, whole in sizes)
        _require(broadcast if value.constant else value.shape == output.shape, f"the shapes {_shapes(inputs)}")
    return Value(output.dtype, output.shape)


def _shapes(values: Sequence[Value]) -> str:
    return " and ".join(str(value.shape) for value in values)


def _infer_relu(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    (value,) = inputs
    _require_floats(value)
    _require_pictures(value, rank=3)
    return value


def _infer_softmax(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    (logits,) = inputs
    _require_floats(logits)
    _require_pictures(logits, rank=1)
    _require_one_of(attributes, "axis", 1, -1)
    return logits


# Layers

_KERNELS = {3: 1, 1: 0}  # side -> padding


def _infer_conv(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    value, weight, *bias = inputs
    _require_floats(*inputs)
    _require_pictures(value, rank=3)
    _require_constants(weight, *bias)
    _require(len(weight.shape) == 4 and weight.shape[2] == weight.shape[3], f"weights {weight.shape}")
    channels, expected, side, _ = weight.shape
    _require(side in _KERNELS and value.shape[0] == expected, f"weights {weight.shape} for {value.shape}")
    _require(all(each.shape == (channels,) for each in bias), "a bias of another length")
    padding, stride = _KERNELS[side], 2 if attributes["strides"] == (2, 2) else 1
    kernel_shape = attributes["kernel_shape"] or (side, side)
    _require_attributes(
        {**attributes, "kernel_shape": kernel_shape},
        kernel_shape=(side, side),
        pads=(padding,) * 4,
        strides=(stride, stride),
        dilations=(1, 1),
        group=1,
        auto_pad="NOTSET",
    )
    height, width = ((size + 2 * padding - side) // stride + 1 for size in value.shape[1:])
    return Value(value.dtype, (channels, height, width))


def _conv_work(inputs: Sequence[Value], output: Value) -> int:
    return output.elements * math.prod(inputs[1].shape[1:])


def _infer_average_pool(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    """Infer the output of global average pooling: the kernel must cover the whole feature map."""
    (value,) = inputs
    _require_floats(value)
    _require_pictures(value, rank=3)
    whole = value.shape[1:]
    _require_attributes(attributes, kernel_shape=whole, pads=(0,) * 4, dilations=(1, 1), ceil_mode=0, auto_pad="NOTSET")
    _require_one_of(attributes, "strides", whole, (1, 1))
    _require_one_of(attributes, "count_include_pad", 0, 1)
    return Value(value.dtype, (value.shape[0], 1, 1))


def _pool_work(inputs: Sequence[Value], output: Value) -> int:
    return WORK_PER_ELEMENT * inputs[0].elements


def _infer_gemm(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    features, weight, bias = inputs
    _require_floats(*inputs)
    _require_pictures(features, rank=1)
    _require_constants(weight, bias)
    _require_attributes(attributes, alpha=1.0, beta=1.0, transA=0, transB=1)
    fits = len(weight.shape) == 2 and weight.shape[1:] == features.shape and bias.shape == weight.shape[:1]
    _require(fits, f"the shapes {_shapes(inputs)}")
    return Value(features.dtype, bias.shape)


def _gemm_work(inputs: Sequence[Value], output: Value) -> int:
    return inputs[1].elements


# Quantization


def _infer_quantize(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    """Infer the output of per-tensor quantization, with one scale and one zero point."""
    value, scale, zero_point = inputs
    _require_constants(scale, zero_point)
    _require(not value.constant and value.dtype == FLOAT and scale.dtype == FLOAT, "values of another type")
    _require(zero_point.dtype in (UINT8, INT8), "a zero point of another type")
    _require(scale.shape == zero_point.shape == (), f"the shapes {_shapes(inputs)}")
    _require_attributes(attributes, axis=1)
    return Value(zero_point.dtype, value.shape)


def _infer_dequantize(inputs: Sequence[Value], attributes: Mapping[str, AttributeValue]) -> Value:
    """Infer the output of dequantization: per tensor for activations, per output channel for constants."""
    value, scale, zero_point = inputs
    _require_constants(scale, zero_point)
    _require(scale.dtype == FLOAT and zero_point.dtype == value.dtype, "values of another type")
    _require(value.dtype in ((INT8, INT32) if value.constant else (UINT8, INT8)), "values of another type")
    _require(scale.shape == zero_point.shape == value.shape[: int(value.constant)], f"the shapes {_shapes(inputs)}")
    _require_attributes(attributes, axis=0 if value.constant else 1)
    return Value(FLOAT, value.shape, value.constant)


_ONE, _TWO, _THREE = range(1, 2), range(2, 3), range(3, 4)

OPERATORS = {
    "Add": Operator(_TWO, {}, _infer_elementwise),
    "AveragePool": Operator(
        _ONE,
        {
            "kernel_shape": (),
            "strides": (1, 1),
            "pads": (0, 0, 0, 0),
            "dilations": (1, 1),
            "auto_pad": "NOTSET",
            "ceil_mode": 0,
            "count_include_pad": 0,
        },
        _infer_average_pool,
        _pool_work,
    ),
    "Cast": Operator(_ONE, {"to": 0}, _infer_cast),
    "Conv": Operator(
        range(2, 4),
        {
            "kernel_shape": (),
            "strides": (1, 1),
            "pads": (0, 0, 0, 0),
            "dilations": (1, 1),
            "group": 1,
            "auto_pad": "NOTSET",
        },
        _infer_conv,
        _conv_work,
    ),
    "DequantizeLinear": Operator(_THREE, {"axis": 1}, _infer_dequantize),
    "Gemm": Operator(_THREE, {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}, _infer_gemm, _gemm_work),
    "Mul": Operator(_TWO, {}, _infer_elementwise),
    "QuantizeLinear": Operator(_THREE, {"axis": 1}, _infer_quantize),
    "Relu": Operator(_ONE, {}, _infer_relu),
    "Reshape": Operator(_TWO, {"allowzero": 0}, _infer_reshape),
    "Softmax": Operator(_ONE, {"axis": -1}, _infer_softmax),
    "Transpose": Operator(_ONE, {"perm": ()}, _infer_transpose),
}
