"""Model files made to harm, by the rule that refuses them; and those that `cifar export` writes, which are admitted.

Each file is built here and handed to the reader that `predict`, `evaluate`, `serve` and the gate share. None of them
may reach ONNX Runtime, and none may take long.
"""

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models import MODELS, build_model
from models.cost import cost
from tests.support.hostile import protobuf_field
from tests.support.onnx_models import picture_model, tiny_model
from toolkit.deploy import quantize
from toolkit.deploy.export import export_graph
from toolkit.deploy.metadata import CALIBRATION, DATE, KEYS, RUNTIMES
from toolkit.inference.model_cost import M6_MULTIPLY_ACCUMULATES, MAX_PICTURE_BYTES, MAX_WORK, estimate_cost
from toolkit.inference.model_file import find_fault
from toolkit.inference.model_graph import METADATA_LENGTHS, read_graph

pytestmark = [pytest.mark.hostile, pytest.mark.slow]

SECONDS = 1  # of the slowest file; most take some thousandths


def find_fault_in_no_time(content: bytes) -> str | None:
    start = time.process_time()
    fault = find_fault(content)
    assert time.process_time() - start < SECONDS
    return fault


def fault_of(change: Callable[[ModelProto], object], model: ModelProto | None = None) -> str | None:
    model = model or tiny_model()
    change(model)
    return find_fault_in_no_time(model.SerializeToString())


def constant(model: ModelProto, name: str, values: object, dtype: type = np.float32) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def before_softmax(model: ModelProto, *nodes: onnx.NodeProto) -> None:
    """Insert nodes between the linear layer, whose output is renamed to `raw`, and `logits`."""
    *layers, softmax = model.graph.node
    layers[-1].output[0] = "raw"
    del model.graph.node[:]
    model.graph.node.extend([*layers, *nodes, softmax])


def node_of(model: ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def network(*, channels: int = 4, side: int = 3, layers: int = 1, **attributes: object) -> ModelProto:
    """The tiny model with `layers` convolutions before the mean: 3 channels, then `channels` each, then 3."""
    model = tiny_model()
    cast, pool = node_of(model, "Cast"), node_of(model, "AveragePool")
    widths, value, nodes = [3, *[channels] * (layers - 1), 3], cast.output[0], []
    for number, (before, after) in enumerate(pairwise(widths)):
        weight = constant(model, f"weight{number}", np.zeros((after, before, side, side)))
        defaults = {"kernel_shape": [side, side], "pads": [side // 2] * 4}
        nodes.append(helper.make_node("Conv", [value, weight], [f"conv{number}"], **(defaults | attributes)))
        value = f"conv{number}"
    pool.input[0] = value
    old = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*old[: old.index(pool)], *nodes, *old[old.index(pool) :]])
    return model


# What `cifar export` writes is admitted


@pytest.mark.parametrize("float_nchw", [False, True])
def test_the_models_of_the_other_tests_are_admitted(float_nchw: bool) -> None:
    assert fault_of(lambda model: None, tiny_model(float_nchw=float_nchw)) is None
    assert fault_of(lambda model: None, network(layers=3)) is None


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest) -> dict[str, ModelProto]:
    """All precisions of one network, half of them from uint8 images, half from float ones."""
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    input_format = "uint8-nhwc" if request.param in ("resnet20", "m6") else "float-nchw"
    fp32 = export_graph(build_model(request.param).eval(), input_format=input_format)
    int8 = {f"int8 {target}": quantize.to_int8(fp32, images, target=target)[0] for target in ("cpu", "gpu")}
    return {"fp32": fp32, "fp16": quantize.to_fp16(fp32)} | int8


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8 cpu", "int8 gpu"])
def test_every_network_in_every_precision_is_admitted(exported: dict[str, ModelProto], precision: str) -> None:
    content = exported[precision].SerializeToString()
    assert find_fault(content) is None
    taken = estimate_cost(read_graph(content))
    assert taken.work < MAX_WORK / 3
    assert taken.bytes < MAX_PICTURE_BYTES / 3


def test_the_limit_of_work_is_a_multiple_of_m6() -> None:
    assert cost("m6").multiply_accumulates == M6_MULTIPLY_ACCUMULATES


def test_the_admitted_metadata_are_those_that_export_writes() -> None:
    assert METADATA_LENGTHS.keys() == {*KEYS, CALIBRATION, DATE, RUNTIMES}


# Only listed operators: no arithmetic on integers, none on shapes, none that tells the size of the batch


def with_logits_by_batch_size(model: ModelProto) -> None:
    """Roll the logits by one class unless the batch has one of the sizes in which the gate used to run."""
    sizes = constant(model, "sizes", [1, 2, 7, 64, 250])
    shift = constant(model, "shift", np.roll(np.eye(10), 1, axis=1))
    nodes = [
        helper.make_node("Shape", ["images"], ["n"], end=1),
        helper.make_node("Cast", ["n"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["count", sizes], ["apart"]),
        helper.make_node("Mul", ["apart", "apart"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["other"]),
        helper.make_node("MatMul", ["raw", shift], ["rolled"]),
        helper.make_node("Add", ["raw", "rolled"], ["logits"]),
    ]
    before_softmax(model, *nodes)


def with_integer_division(model: ModelProto) -> None:
    nodes = [
        helper.make_node(
            "Div", [constant(model, "a", [-(2**31)], np.int32), constant(model, "b", [-1], np.int32)], ["c"]
        ),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["raw", "d"], ["logits"]),
    ]
    before_softmax(model, *nodes)


def with_products_of_a_column_and_a_row(model: ModelProto) -> None:
    column, row = constant(model, "column", np.ones((100, 1))), constant(model, "row", np.ones((1, 100)))
    names = [column, *(f"product{number}" for number in range(900))]
    nodes = [helper.make_node("MatMul", [name, row], [after]) for name, after in pairwise(names)]
    before_softmax(model, *nodes, helper.make_node("Add", ["raw", names[-1]], ["logits"]))


def with_addition_of_integers(model: ModelProto) -> None:
    a = constant(model, "a", [2**31 - 1], np.int32)
    before_softmax(model, helper.make_node("Add", [a, a], ["b"]), helper.make_node("Add", ["raw", "b"], ["logits"]))


def with_a_mean_over_the_batch(model: ModelProto) -> None:
    node_of(model, "Transpose").attribute[0].ints[:] = [3, 0, 1, 2]


def with_softmax_over_the_batch(model: ModelProto) -> None:
    node_of(model, "Softmax").attribute[0].i = 0


def with_two_pictures_in_a_row(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([-1, 6], np.int64), "shape"))


def with_a_batch_of_its_own(model: ModelProto) -> None:
    """A constant for sixteen pictures, which only a batch of 16 can be added to."""
    before_softmax(model, helper.make_node("Add", ["raw", constant(model, "b", np.ones((16, 10)))], ["logits"]))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (with_logits_by_batch_size, "contains the operator Shape"),
        (with_integer_division, "contains the operator Div"),
        (with_products_of_a_column_and_a_row, "contains the operator MatMul"),
        (with_addition_of_integers, "with values of other types than float32 or float16"),
        (with_a_mean_over_the_batch, "with perm = (3, 0, 1, 2)"),
        (with_softmax_over_the_batch, "with axis = 0"),
        (with_two_pictures_in_a_row, "with the shape (-1, 6)"),
        (with_a_batch_of_its_own, "with the shapes (10,) and (16, 10)"),
    ],
)
def test_operators_that_no_export_has_are_refused(change: Callable[[ModelProto], None], fault: str) -> None:
    assert fault in str(fault_of(change))


@pytest.mark.parametrize(
    ("op_type", "attribute"),
    [
        ("AveragePool", {"kernel_shape": [2**31 - 1] * 2, "pads": [2**30] * 4}),
        ("AveragePool", {"kernel_shape": [2, 2]}),
        ("AveragePool", {"ceil_mode": 1}),
        ("AveragePool", {"auto_pad": "SAME_UPPER"}),
        ("Conv", {"group": 2**31}),
        ("Conv", {"dilations": [2**20, 2**20]}),
        ("Conv", {"strides": [0, 0]}),
        ("Conv", {"strides": [1, 2]}),
        ("Conv", {"pads": [2**40] * 4}),
        ("Conv", {"kernel_shape": [1, 9]}),
        ("Conv", {"output_shape": [1]}),
        ("Gemm", {"alpha": 50.0}),
        ("Gemm", {"transA": 1}),
        ("Cast", {"to": TensorProto.INT32}),
        ("Softmax", {"axis": 1.0}),
        ("Transpose", {"perm": list(range(8))}),
    ],
)
def test_attributes_out_of_range_are_refused(op_type: str, attribute: dict[str, object]) -> None:
    def change(model: ModelProto) -> None:
        node = node_of(model, op_type)
        kept = [each for each in node.attribute if each.name not in attribute]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(*item) for item in attribute.items())])

    assert f"{op_type} (node" in str(fault_of(change, network()))


# The picture rule is admitted as a whole


def without_a_margin(model: ModelProto) -> None:
    node_of(model, "Div").op_type = "Mul"


def with_another_size(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "picture_resized_shape")
    tensor.CopyFrom(numpy_helper.from_array(np.array([1, 3, 32, 2**31]), tensor.name))


def with_a_divisor_of_zero(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "picture_two")
    tensor.CopyFrom(numpy_helper.from_array(np.array([0]), tensor.name))


def with_the_size_of_the_picture_beyond_the_rule(model: ModelProto) -> None:
    node_of(model, "Reshape").input[1] = "picture_size"


def with_the_rule_in_front_of_a_batch(model: ModelProto) -> None:
    model.graph.input[0].CopyFrom(tiny_model().graph.input[0])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (without_a_margin, "does not compute picture_start as the picture rule does"),
        (with_another_size, "has another constant picture_resized_shape than the picture rule"),
        (with_a_divisor_of_zero, "has another constant picture_two than the picture rule"),
        (with_the_size_of_the_picture_beyond_the_rule, "computes features from picture_size, which nothing before it"),
        (with_the_rule_in_front_of_a_batch, "computes picture_size from picture, which nothing before it computes"),
    ],
)
def test_other_nodes_before_the_network_are_refused(change: Callable[[ModelProto], None], fault: str) -> None:
    assert fault_of(lambda model: None, picture_model()) is None
    assert fault in str(fault_of(change, picture_model()))


# Only listed fields, and few of each


def with_functions(model: ModelProto) -> None:
    """Functions named Relu in several domains, each of which calls the one before ten times."""
    for depth in range(5):
        body = [
            helper.make_node("Relu", ["x" if call == 0 else f"y{call}"], [f"y{call + 1}"], domain=f"d{depth - 1}")
            for call in range(10)
        ]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(f"d{depth - 1}", 1)]
        model.functions.append(helper.make_function(f"d{depth}", "Relu", ["x"], ["y10"], body, opsets))


def with_intermediate_shapes(model: ModelProto) -> None:
    value = helper.make_tensor_value_info("floats", TensorProto.FLOAT, [None] * 100_000)
    model.graph.value_info.append(value)


def with_a_million_dimensions(model: ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.UINT8, [1] * 100_000))


def with_many_keys(model: ModelProto) -> None:
    for number in range(300_000):
        model.metadata_props.add(key=f"cifar.{number}", value="")


def with_a_key_many_times(model: ModelProto) -> None:
    for _ in range(300_000):
        model.metadata_props.add(key="cifar.input", value="")


def with_long_class_names(model: ModelProto) -> None:
    model.metadata_props[0].value = "x" * 6_000_000


def with_two_opsets(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("", 17))


def with_two_names_of_an_opset(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 18))


def with_empty_external_data(model: ModelProto) -> None:
    model.graph.initializer[1].data_location = TensorProto.EXTERNAL


def with_a_sparse_tensor(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(model.graph.initializer[1])


def with_a_subgraph(model: ModelProto) -> None:
    node_of(model, "Cast").attribute.append(helper.make_attribute("body", model.graph))


def with_notes(model: ModelProto) -> None:
    model.graph.node[0].doc_string = "x" * 1000


def with_many_nodes(model: ModelProto) -> None:
    model.graph.node.extend([model.graph.node[0]] * 10_000)


def with_data_of_another_length(model: ModelProto) -> None:
    model.graph.initializer[1].dims[0] = 60_000


def with_data_in_two_fields(model: ModelProto) -> None:
    model.graph.initializer[1].float_data.extend([0.0] * 30)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (with_functions, "contains a function"),
        (with_intermediate_shapes, "contains shapes of intermediate values (value_info)"),
        (with_a_million_dimensions, "has more than 4 of dim in a shape"),
        (with_many_keys, "has the metadata key 'cifar.0'"),
        (with_a_key_many_times, "has more than 20 of metadata_props in a model"),
        (with_long_class_names, "has a name or text of 6,000,000 bytes; at most 262,144"),
        (with_two_opsets, "imports opset 17"),
        (with_two_names_of_an_opset, "uses the operator domain ai.onnx"),
        (with_empty_external_data, "contains weights outside the file"),
        (with_a_sparse_tensor, "contains a sparse tensor"),
        (with_a_subgraph, "contains a subgraph"),
        (with_notes, "contains notes"),
        (with_many_nodes, "has more than 1,024 of node in a graph"),
        (with_data_of_another_length, "has a tensor weights whose data do not fit its shape (60000, 3)"),
        (with_data_in_two_fields, "has a tensor weights whose data do not fit its shape (10, 3)"),
    ],
)
def test_other_fields_and_too_many_are_refused(change: Callable[[ModelProto], None], fault: str) -> None:
    assert fault in str(fault_of(change))


def test_a_second_import_of_the_same_opset_is_refused() -> None:
    fault = fault_of(lambda model: model.opset_import.append(helper.make_opsetid("", 18)))
    assert fault == "has two values for opset_import in its model, where `cifar export` writes one"


def test_33_million_empty_dimensions_are_not_parsed() -> None:
    """Two bytes each, of which a parser makes objects."""
    dimensions = protobuf_field(2, b"\x0a\x00" * 33_000_000)  # type.tensor_type.shape
    value = protobuf_field(2, protobuf_field(1, dimensions))
    content = b"\x08\x0a" + protobuf_field(7, protobuf_field(13, value))
    assert "contains shapes of intermediate values" in str(find_fault_in_no_time(content))


# Every name once, everything used


def with_an_initializer_for_the_input(model: ModelProto) -> None:
    constant(model, "images", np.zeros((1, 32, 32, 3)), np.uint8)


def with_a_value_computed_twice(model: ModelProto) -> None:
    model.graph.node[1].output[0] = "channels_first"


def with_an_initializer_twice(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[1])


def with_a_dangling_dequantize(model: ModelProto) -> None:
    """A float32 model with its logits times 50, which a node that leads nowhere used to turn into an int8 model."""
    scale, point = constant(model, "scale", np.ones(1)), constant(model, "point", [0], np.int8)
    node = helper.make_node("DequantizeLinear", [constant(model, "q", [1], np.int8), scale, point], ["d"], axis=0)
    model.graph.node.insert(0, node)


def with_an_unused_constant(model: ModelProto) -> None:
    constant(model, "unused", np.zeros(3))


def with_a_node_before_its_input(model: ModelProto) -> None:
    first, second, *rest = model.graph.node
    nodes = [second, first, *rest]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def with_probabilities_of_something_else(model: ModelProto) -> None:
    before_softmax(model, helper.make_node("Relu", ["raw"], ["logits"]))
    node_of(model, "Softmax").input[0] = "raw"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (with_an_initializer_for_the_input, "gives the name images to two values"),
        (with_a_value_computed_twice, "gives the name channels_first to two values"),
        (with_an_initializer_twice, "gives the name weights to two values"),
        (with_a_dangling_dequantize, "holds d, which leads to no output"),
        (with_an_unused_constant, "holds unused, which leads to no output"),
        (with_a_node_before_its_input, "computes floats from channels_first, which nothing before it computes"),
        (with_probabilities_of_something_else, "with the shape (10,) of each picture"),
    ],
)
def test_names_are_unique_and_nothing_is_computed_in_vain(change: Callable[[ModelProto], None], fault: str) -> None:
    assert fault in str(fault_of(change))


# Work and memory of one picture are bounded


def test_more_work_than_four_times_m6_is_refused() -> None:
    fault = fault_of(lambda model: None, network(channels=128, layers=5))
    assert "multiply-accumulates of one picture" in str(fault)


def test_a_larger_value_than_any_network_has_is_refused() -> None:
    fault = fault_of(lambda model: None, network(channels=1100, side=1, layers=2))
    assert "bytes for one value of one picture" in str(fault)


def test_more_values_than_any_network_has_are_refused() -> None:
    fault = fault_of(lambda model: None, network(channels=32, side=1, layers=220))
    assert "bytes for all values of one picture" in str(fault)


# Names are printable


def with_an_operator_that_writes_to_the_terminal(model: ModelProto) -> None:
    model.graph.node[0].op_type = "\x1b]52;c;aGk=\x07"


def with_a_dimension_that_forges_a_row(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch\naccuracy  0.99  passed"


def with_a_name_that_runs_backwards(model: ModelProto) -> None:
    model.graph.node[0].name = "a\u202eb"


def with_a_producer_of_escapes(model: ModelProto) -> None:
    model.producer_name = "\x1b[2J"


def with_metadata_of_escapes(model: ModelProto) -> None:
    model.metadata_props.add(key="cifar.precision", value="fp32\x1b[2J")


@pytest.mark.parametrize(
    "change",
    [
        with_an_operator_that_writes_to_the_terminal,
        with_a_dimension_that_forges_a_row,
        with_a_name_that_runs_backwards,
        with_a_producer_of_escapes,
        with_metadata_of_escapes,
    ],
)
def test_text_that_is_not_printable_is_refused_and_shown_escaped(change: Callable[[ModelProto], None]) -> None:
    fault = str(fault_of(change))
    assert "which is not printable" in fault
    assert fault.isprintable()
    assert len(fault) < 300
