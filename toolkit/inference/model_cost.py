"""What running a model takes for one picture, from the shapes in the file: time as multiply-accumulates, and memory.

Nothing is run: the types and shapes of all values are inferred node by node, from the input to the outputs.
"""

from typing import NamedTuple

from toolkit.inference.model_graph import FLOAT, UINT8, Fault, Graph, Node
from toolkit.inference.model_operators import Value, infer_output

M6_MULTIPLY_ACCUMULATES = 105_743_616  # `models.cost` of m6, the largest network of this toolkit

MAX_WORK = 4 * M6_MULTIPLY_ACCUMULATES
MAX_VALUE_BYTES = 4 * 2**20  # of one value for one picture: 32 times the largest of m6
MAX_PICTURE_BYTES = 24 * 2**20  # of all values for one picture: four times those of m6 in int8


class Cost(NamedTuple):
    """What one picture takes.

    Attributes:
        work: multiply-accumulates, and the reading and writing of values in the same unit.
        bytes: of all values that depend on the picture; ONNX Runtime keeps some of them at a time.
    """

    work: int
    bytes: int


def estimate_cost(graph: Graph) -> Cost:
    """Infer every value of the graph and add up what they take for one picture.

    Raises:
        Fault: another form of graph than `cifar export` writes, or one that takes more than `MAX_WORK`,
            `MAX_VALUE_BYTES` or `MAX_PICTURE_BYTES`.
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
    """The values that are known before the first node, and the nodes that then work on batches of pictures.

    A model whose input is a batch of pictures starts with that input. A form of input that must first be made into a
    batch by operations of its own is admitted here: as one fixed sequence of nodes, compared as a whole, whose result
    is the first value.
    """
    values: dict[str, Value] = {}
    for tensor in graph.initializers:
        _define(values, tensor.name, Value(tensor.dtype, tensor.shape, constant=True, integers=tensor.integers))
    if len(graph.inputs) != 1:
        raise Fault(f"has {len(graph.inputs)} inputs, where a model of this toolkit has one")
    (images,) = graph.inputs
    batch, *sizes = images.shape or (1,)
    fixed = tuple(size for size in sizes if isinstance(size, int))
    if not isinstance(batch, str) or len(fixed) < 3 or images.dtype not in (UINT8, FLOAT):
        shape = ", ".join(map(str, images.shape))
        raise Fault(f"has an input {images.name} ({shape}), where a model of this toolkit takes a batch of pictures")
    _define(values, images.name, Value(images.dtype, fixed))
    return values, list(graph.nodes)


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
            raise Fault(f"needs {found:,} {unit} of one picture, up to {name}; at most {limit:,} are admitted")


def _check_outputs(graph: Graph, values: dict[str, Value], unused: set[str]) -> None:
    """Every value must lead to the two outputs, and the second output must be the softmax of the first."""
    names = [output.name for output in graph.outputs]
    last = graph.nodes[-1] if graph.nodes else None
    if last is None or last.op_type != "Softmax" or [*last.inputs, last.output] != names:
        raise Fault("does not end in logits and the softmax of these")
    if dangling := sorted(unused - {last.output}):
        raise Fault(f"holds {dangling[0]}, which leads to no output")
    for output in graph.outputs:
        value = values[output.name]
        if output.dtype != value.dtype or output.shape[1:] != value.shape or not isinstance(output.shape[0], str):
            declared = ", ".join(map(str, output.shape))
            computed = ", ".join(map(str, ("batch", *value.shape)))
            raise Fault(f"declares {output.name} as ({declared}), and computes ({computed}), or another type")
