"""Compare two ONNX graphs node by node: operators, attributes, connections and weights, but not the names of values.

Float32 and float16 weights must be bit-identical: BatchNorm folding and rounding to float16 give the same result on
every machine.

Int8 weights depend only on the checkpoint: their scales must be equal up to rounding, their values within one step.
Activations depend on calibration, which varies between processors and toolkit versions: their scales must agree within
a factor of `CALIBRATION_FACTOR`, their zero points within `ZERO_POINT_STEPS`; a zero point that is 0 in the expected
graph must be 0. The scale of a bias includes that of an activation; dequantized biases must agree within one step.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

CALIBRATION_FACTOR = 2.0
ZERO_POINT_STEPS = 32
SCALE_ROUNDING = 1e-5  # relative, of the scales of weights

Array = NDArray[Any]


def find_difference(model: ModelProto, expected: ModelProto) -> str | None:
    """Describe the first difference between two graphs, in execution order; return None if there is none.

    Args:
        model: a graph without subgraphs, in which every node leads to an output (`model_file.find_fault`).
        expected: the same network as the export builds it.
    """
    constants, expected_constants = _constants(model), _constants(expected)
    pairs = {mine.name: theirs.name for mine, theirs in zip(model.graph.input, expected.graph.input, strict=False)}
    for mine, theirs in zip_longest(model.graph.node, expected.graph.node):
        if mine is None or theirs is None:
            return f"{len(model.graph.node)} nodes, where the checkpoint gives {len(expected.graph.node)}"
        if difference := _compare(mine, constants, theirs, expected_constants, pairs):
            return f"node {mine.name or mine.output[0]} ({mine.op_type}): {difference}"
        pairs[mine.output[0]] = theirs.output[0]
    outputs = zip(model.graph.output, expected.graph.output, strict=False)
    return None if all(pairs.get(mine.name) == theirs.name for mine, theirs in outputs) else "its outputs differ"


def _constants(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _compare(
    mine: NodeProto,
    constants: dict[str, Array],
    theirs: NodeProto,
    expected_constants: dict[str, Array],
    pairs: dict[str, str],
) -> str | None:
    """Describe how two nodes differ; `pairs` maps the names of earlier values to the expected names."""
    if mine.op_type != theirs.op_type:
        return f"the checkpoint gives {theirs.op_type} here"
    if _attributes(mine) != _attributes(theirs) or len(mine.input) != len(theirs.input):
        return "its attributes differ"
    weights = []
    for name, other in zip(mine.input, theirs.input, strict=True):
        if name in constants and other in expected_constants:
            weights.append((constants[name], expected_constants[other]))
        elif pairs.get(name, "") != other:  # "" for an input that is left out
            return "it takes another input"
    for found, expected in weights:
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return f"a constant is {found.dtype} {found.shape}, not {expected.dtype} {expected.shape}"
    if mine.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _compare_quantized(*zip(*weights, strict=True))
    for found, expected in weights:
        if found.tobytes() != expected.tobytes():
            difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
            return f"its weights differ by up to {difference:.2g}"
    return None


def _attributes(node: NodeProto) -> dict[str, bytes]:
    return {attribute.name: attribute.SerializeToString(deterministic=True) for attribute in node.attribute}


def _compare_quantized(found: Sequence[Array], expected: Sequence[Array]) -> str | None:
    """Compare (scale, zero point) of an activation, or (values, scale, zero point) of weights or biases."""
    if len(found) == 2:
        return _compare_activation(*found, *expected)
    if not np.array_equal(found[2], expected[2]):
        return "the zero points of its weights differ"
    compare = _compare_weights if found[0].dtype == np.int8 else _compare_biases
    return compare(*found[:2], *expected[:2])


def _compare_activation(
    scale: Array, zero_point: Array, expected_scale: Array, expected_zero_point: Array
) -> str | None:
    if not 1 / CALIBRATION_FACTOR <= float(scale) / float(expected_scale) <= CALIBRATION_FACTOR:
        return f"its scale is {float(scale):.3g}, where calibration gives {float(expected_scale):.3g}"
    steps = abs(int(zero_point) - int(expected_zero_point))
    if steps > ZERO_POINT_STEPS or (steps and int(expected_zero_point) == 0):
        return f"its zero point is {int(zero_point)}, where calibration gives {int(expected_zero_point)}"
    return None


def _compare_weights(values: Array, scale: Array, expected_values: Array, expected_scale: Array) -> str | None:
    if not np.allclose(scale, expected_scale, rtol=SCALE_ROUNDING, atol=0):
        return "the scales of its weights differ"
    steps = int(np.abs(values.astype(np.int64) - expected_values).max())
    return f"its weights differ by up to {steps} steps" if steps > 1 else None


def _compare_biases(values: Array, scale: Array, expected_values: Array, expected_scale: Array) -> str | None:
    """Compare biases, whose scale is the activation's scale times the weights' scale."""
    factor = CALIBRATION_FACTOR * (1 + SCALE_ROUNDING)
    ratio = scale.astype(np.float64) / expected_scale
    if not ((ratio >= 1 / factor) & (ratio <= factor)).all():
        return "the scales of its biases differ"
    difference = np.abs(values * scale.astype(np.float64) - expected_values * expected_scale.astype(np.float64))
    return "its biases differ by more than a step" if (difference > np.maximum(scale, expected_scale)).any() else None
