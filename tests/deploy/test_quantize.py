"""Lower precisions: what is float16 or int8 and what stays in float32, how near the answers stay, and the gate."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper

from models import ResNet, build_model
from tests.support.deploy import Case, blocky_images, randomize, tiny_case, tiny_model, torchvision_logits
from toolkit.data.images import Images
from toolkit.deploy import Rejected, export_onnx, graph, verify
from toolkit.deploy.export import export_graph
from toolkit.deploy.graph_comparison import find_difference
from toolkit.deploy.quantize import CALIBRATION_METHODS, choose_calibration_images, to_fp16, to_int8
from toolkit.errors import UsageError
from toolkit.inference.model_file import find_fault

pytestmark = pytest.mark.slow

TEST = blocky_images(200, seed=3)
TEST_NHWC = TEST.permute(0, 2, 3, 1).contiguous().numpy()
CALIBRATION = blocky_images(128, seed=4).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope="module")
def network() -> ResNet:
    return randomize(build_model("resnet20"))


@pytest.fixture(scope="module")
def fp32(network: ResNet) -> ModelProto:
    return export_graph(network)


@pytest.fixture(scope="module")
def expected(network: ResNet) -> np.ndarray:
    return torchvision_logits(network, TEST).numpy()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with tiny_case(tmp_path_factory.mktemp("run"), test=1_000, doubtful=2_000) as case:
        yield case


def logits_of(model: ModelProto, images: np.ndarray = TEST_NHWC) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def initializers(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def same_contract(model: ModelProto) -> bool:
    onnx.checker.check_model(model, full_check=True)
    return graph.describe_interface(model) == graph.required_interface("uint8-nhwc", classes=10) and not find_fault(
        model.SerializeToString()
    )


# float16


def test_fp16_holds_the_network_in_half_the_bytes_and_nothing_else(fp32: ModelProto) -> None:
    model = to_fp16(fp32)
    assert same_contract(model)
    assert graph.detect_precision(model) == "fp16"
    assert model.ByteSize() < 0.52 * fp32.ByteSize()
    floats = {name: value.dtype for name, value in initializers(model).items() if value.dtype.kind == "f"}
    normalization = {name for node in model.graph.node if node.op_type in ("Mul", "Sub") for name in node.input}
    assert {name for name, dtype in floats.items() if dtype == np.float32} <= normalization | {_shift(model)}
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 3  # from uint8, to float16, to float32


def _shift(model: ModelProto) -> str:
    return next(node.input[1] for node in model.graph.node if node.op_type == "Add")


def test_fp16_stays_near_pytorch(fp32: ModelProto, expected: np.ndarray) -> None:
    assert 0 < np.abs(logits_of(to_fp16(fp32)) - expected).max() < 0.1


def test_fp16_leaves_the_float32_graph_alone(fp32: ModelProto) -> None:
    before = fp32.SerializeToString()
    to_fp16(fp32)
    to_int8(fp32, CALIBRATION)
    assert fp32.SerializeToString() == before


# int8


@pytest.mark.parametrize(("target", "dtype"), [("cpu", np.uint8), ("gpu", np.int8)])
def test_int8_has_the_form_of_its_target(fp32: ModelProto, expected: np.ndarray, target: str, dtype: type) -> None:
    model, made = to_int8(fp32, CALIBRATION, target=target)
    assert same_contract(model)
    assert graph.detect_precision(model) == "int8"
    assert made == {"method": "minmax", "images": 128, "seed": 0, "target": target}
    assert model.ByteSize() < 0.35 * fp32.ByteSize()

    values = initializers(model)
    zero_points = [values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {point.dtype.type for point in zero_points} == {dtype}
    assert target == "cpu" or not any(point.any() for point in zero_points)

    producers = {node.output[0]: node for node in model.graph.node}
    for conv in (node for node in model.graph.node if node.op_type == "Conv"):
        weight = producers[conv.input[1]]
        assert values[weight.input[0]].dtype == np.int8
        assert values[weight.input[1]].shape == values[weight.input[0]].shape[:1]  # a scale per output channel
        assert np.abs(values[weight.input[0]]).max() <= (64 if target == "cpu" else 127)

    # Twenty layers of random weights magnify rounding as no trained network does: alike, not equal.
    assert np.corrcoef(logits_of(model).ravel(), expected.ravel())[0, 1] > 0.9


def test_int8_leaves_no_layer_in_float_on_the_cpu(fp32: ModelProto, tmp_path: Path) -> None:
    model, _ = to_int8(fp32, CALIBRATION)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QLinearConv"] == 21
    assert operators["QLinearAdd"] == 9
    assert operators["QGemm"] == operators["QLinearAveragePool"] == 1
    assert operators["Conv"] == operators["Gemm"] == operators["Relu"] == 0
    assert operators["Add"] == 1  # the normalization


def test_int8_scales_whole_rows_of_pixels_with_the_same_values(fp32: ModelProto) -> None:
    """Over three channels at a time, ONNX Runtime's broadcasting is slow."""
    quantized = to_int8(fp32, CALIBRATION)[0]
    before, after = initializers(fp32), initializers(quantized)
    wide = [name for name, value in after.items() if value.shape == (1, 3, 1, 32)]
    assert len(wide) == 2
    assert all((after[name] == before[name]).all() for name in wide)


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_every_calibration_method_works_and_repeats(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    with tiny_model():
        network = randomize(build_model("tiny"))
        model = export_graph(network, input_format="float-nchw")
    first, made = to_int8(model, CALIBRATION, method=method)
    second, _ = to_int8(model, CALIBRATION, method=method)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert made["method"] == method
    answers = logits_of(first, TEST.numpy().astype(np.float32) / np.float32(255)).argmax(1)
    assert (answers == torchvision_logits(network, TEST).argmax(1).numpy()).mean() >= 0.8
    assert capfd.readouterr().out == ""


def test_an_unknown_method_or_target_is_wrong_usage(fp32: ModelProto) -> None:
    with pytest.raises(UsageError, match="valid are minmax, entropy, percentile"):
        to_int8(fp32, CALIBRATION, method="guess")
    with pytest.raises(UsageError, match="valid are cpu, gpu"):
        to_int8(fp32, CALIBRATION, target="tpu")


def test_calibration_images_are_training_images_and_always_the_same() -> None:
    train = Images(blocky_images(1_000, seed=5), torch.arange(1_000))
    chosen = choose_calibration_images(train)
    assert chosen.shape == (512, 32, 32, 3)
    assert np.array_equal(chosen, choose_calibration_images(train))
    pixels = {image.tobytes() for image in train.images.permute(0, 2, 3, 1).contiguous().numpy()}
    assert {image.tobytes() for image in chosen} <= pixels
    assert len({image.tobytes() for image in chosen}) == 512
    assert len(choose_calibration_images(train.take(torch.arange(40)))) == 40


# Compared with the graph of the checkpoint


def test_other_calibration_images_give_a_graph_that_counts_as_the_same(fp32: ModelProto) -> None:
    first, second = (to_int8(fp32, CALIBRATION[part])[0] for part in (slice(64), slice(64, None)))
    assert first != second
    assert find_difference(first, second) is None


@pytest.mark.parametrize(
    ("name", "change", "difference"),
    [
        ("network.stage1.0.conv1.weight_quantized", lambda values: values[::-1].copy(), "its weights differ by up to"),
        ("network.stage1.0.conv1.weight_scale", lambda values: values * 2, "the scales of its weights differ"),
        ("network.linear.bias_quantized", lambda values: values + 2, "its biases differ by more than a step"),
        ("relu_18_scale", lambda values: values * 3, "its scale is"),
        ("relu_18_zero_point", lambda values: values + 1, "its zero point is 1, where calibration gives 0"),
    ],
)
def test_other_quantized_values_are_a_difference(
    fp32: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray], difference: str
) -> None:
    expected = to_int8(fp32, CALIBRATION[:8])[0]
    model = ModelProto.FromString(expected.SerializeToString())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), name))
    found = find_difference(model, expected)
    assert found is not None
    assert difference in found
    assert found.startswith(
        f"node {name.partition('_quantized')[0].removesuffix('_scale').removesuffix('_zero_point')}_"
    )


# Through the gate


@pytest.mark.parametrize(("precision", "target"), [("fp16", "cpu"), ("int8", "cpu"), ("int8", "gpu")])
def test_each_precision_passes_the_gate_by_its_own_column(
    case: Case, tmp_path: Path, precision: str, target: str
) -> None:
    output = tmp_path / "model.onnx"
    report = export_onnx(
        case.checkpoint, output, data=case.source, precision=precision, target=target, min_accuracy=0.5
    )
    lines = {check.name: check for check in report.checks}
    assert report.figures.precision == precision
    assert lines["labels, test images"].limit == "reported"
    assert lines["logits, test images"].limit == ("at most 0.1" if precision == "fp16" else "reported")
    metadata = {item.key: item.value for item in onnx.load(output).metadata_props}
    assert metadata["cifar.precision"] == precision
    calibration = {"images": 64, "method": "minmax", "seed": 0, "target": target}
    assert json.loads(metadata.get("cifar.calibration", "null")) == (calibration if precision == "int8" else None)
    assert verify(output, data=case.source, checkpoint=case.checkpoint, min_accuracy=0.5).passed


def test_the_precision_is_the_graphs_and_not_the_one_claimed(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    export_onnx(case.checkpoint, output, data=case.source, precision="int8", min_accuracy=0.5)
    model = onnx.load(output)
    next(item for item in model.metadata_props if item.key == "cifar.precision").value = "fp32"
    output.write_bytes(model.SerializeToString())
    with pytest.raises(Rejected, match="cifar.precision is fp32, computed: int8") as caught:
        verify(output, data=case.source, min_accuracy=0.5)
    assert caught.value.report.figures.precision == "int8"
