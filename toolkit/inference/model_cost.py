"""Estimate the cost of a model for one picture, from the shapes in the file: multiply-accumulates and memory.

The model is not run: the types and shapes of all values are inferred node by node, from the input to the outputs.
"""

from itertools import zip_longest
from typing import NamedTuple

from toolkit.inference import picture_nodes
from toolkit.inference.model_graph import FLOAT, INT64, UINT8, Fault, Graph, Node
from toolkit.inference.model_operators import Value, infer_output

M6_MULTIPLY_ACCUMULATES = 105_743_616  # `models.cost` of m6, the largest network of this toolkit

MAX_WORK = 4 * M6_MULTIPLY_ACCUMULATES
MAX_VALUE_BYTES = 4 * 2**20  # of one value for one picture: 32 times the largest of m6
MAX_PICTURE_BYTES = 24 * 2**20  # of all values for one picture: four times those of m6 in int8


class Cost(NamedTuple):
    """The cost of one picture.

    Attributes:
        work: multiply-accumulates, including the equivalent cost of reading and writing values.
        bytes: total size of the values that depend on the picture; ONNX Runtime does not keep all of them at once.
    """

    work: int
    bytes: int


def estimate_cost(graph: Graph) -> Cost:
    """Infer the type and shape of every value, and return the total cost for one picture.

    Raises:
        Fault: a graph that `cifar export` does not write, or a cost above `MAX_WORK`, `MAX_VALUE_BYTES` or
            `MAX_PICTURE_BYTES`.
    """
    values, nodes = _start(graph)
    work = total = 0
    unused = set(values)
    for node in nodes:
        if missing := [name for name in node.inputs if name not in values]:
            raise Fault(f"computes {node.output} from {missing[0] or 'nothing'}, which nothing before it computes")
        output, taken = infer_output(node, [values[name] for name in node.inputs])
        work, total = work + taken, total + (0 if output.constant else output.bytes)
        _require_within(node.output, output, work=work, total=total)
        _define(values, node.output, output)
        unused.difference_update(node.inputs)
        unused.add(node.output)
    _check_outputs(graph, values, unused)
    return Cost(work, total)


def _start(graph: Graph) -> tuple[dict[str, Value], list[Node]]:
    """Return the values defined before the first node of the network, and the nodes of the network.

    The input of the network is the input of the graph, a batch of pictures. If the graph takes one picture of any size,
    it is the output of the nodes that `cifar export --input picture` adds, which are compared with `picture_nodes`.
    """
    values: dict[str, Value] = {}
    for tensor in graph.initializers:
        _define(values, tensor.name, Value(tensor.dtype, tensor.shape, constant=True, integers=tensor.integers))
    if len(graph.inputs) != 1:
        raise Fault(f"has {len(graph.inputs)} inputs, where a model of this toolkit has one")
    (images,) = graph.inputs
    if images.name == picture_nodes.PICTURE:
        return values, _skip_picture_nodes(graph, values)
    batch, *sizes = images.shape or (1,)
    fixed = tuple(size for size in sizes if isinstance(size, int))
    if not isinstance(batch, str) or len(fixed) < 3 or images.dtype not in (UINT8, FLOAT):
        raise Fault(f"has an input {images.name} {_show(images.shape)}, where a model of this toolkit takes pictures")
    _define(values, images.name, Value(images.dtype, fixed))
    return values, list(graph.nodes)


def _skip_picture_nodes(graph: Graph, values: dict[str, Value]) -> list[Node]:
    """Check that the first nodes are `picture_nodes.NODES`, define their output, and return the remaining nodes."""
    (picture,) = graph.inputs
    height, width, channels = picture.shape if len(picture.shape) == 3 else (0, 0, 0)
    if picture.dtype != UINT8 or channels != 3 or not (isinstance(height, str) and isinstance(width, str)):
        raise Fault(f"has an input {picture.name} {_show(picture.shape)}, not a picture (height, width, 3) of bytes")
    expected = picture_nodes.NODES
    for node, rule in zip_longest(graph.nodes[: len(expected)], expected):
        if node is None or (node.op_type, node.inputs, node.output, node.attributes) != rule:
            raise Fault(f"does not compute {rule.output} as the picture rule does")
    for name, integers in picture_nodes.CONSTANTS.items():
        if values.pop(name, None) != Value(INT64, (len(integers),), constant=True, integers=integers):
            raise Fault(f"has another constant {name} than the picture rule")
    _define(values, picture_nodes.IMAGES, Value(UINT8, (32, 32, 3)))
    reserved = {picture.name, *picture_nodes.CONSTANTS, *(rule.output for rule in expected)} - {picture_nodes.IMAGES}
    rest = list(graph.nodes[len(expected) :])
    if taken := reserved & {*values, *(node.output for node in rest)}:
        raise Fault(f"gives the name {min(taken)} to two values")
    return rest


def _define(values: dict[str, Value], name: str, value: Value) -> None:
    if not name or name in values:
        raise Fault(f"gives the name {name} to two values" if name else "has a value without a name")
    values[name] = value


def _require_within(name: str, value: Value, *, work: int, total: int) -> None:
    for found, limit, unit in [
        (work, MAX_WORK, "multiply-accumulates"),
        (value.bytes, MAX_VALUE_BYTES, "bytes for one value"),
        (total, MAX_PICTURE_BYTES, "bytes for all values"),
    ]:
        if found > limit:
            raise Fault(f"needs {found:,} {unit} of one picture, up to {name}; at most {limit:,} are allowed")


def _check_outputs(graph: Graph, values: dict[str, Value], unused: set[str]) -> None:
    """Check that every value leads to an output, and that the second output is the softmax of the first."""
    names = [output.name for output in graph.outputs]
    last = graph.nodes[-1] if graph.nodes else None
    if last is None or last.op_type != "Softmax" or [*last.inputs, last.output] != names:
        raise Fault("does not end in logits and the softmax of these")
    if dangling := sorted(unused - {last.output}):
        raise Fault(f"holds {dangling[0]}, which leads to no output")
    one_picture = graph.inputs[0].name == picture_nodes.PICTURE
    for output in graph.outputs:
        value, rows = values[output.name], output.shape[:1]
        fits = rows == (1,) if one_picture else all(isinstance(size, str) for size in rows)
        if output.dtype != value.dtype or output.shape[1:] != value.shape or not (rows and fits):
            computed = _show((1 if one_picture else "batch", *value.shape))
            raise Fault(f"declares {output.name} as {_show(output.shape)}, and computes {computed}, or another type")


def _show(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
