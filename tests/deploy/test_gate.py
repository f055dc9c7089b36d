"""The gate: exact limits, and each fault rejected by its own check."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models import build_model
from tests.support.deploy import randomize, source_for, tiny_model, write_checkpoint
from tests.support.sources import FixedSource
from toolkit.data.images import Images
from toolkit.deploy import Check, Rejected, Report, export_onnx, gate, verify
from toolkit.deploy.batches import draw_batches
from toolkit.deploy.gate import TOLERANCES, Gate, Tolerances
from toolkit.deploy.graph import detect_precision
from toolkit.deploy.metadata import required_correct
from toolkit.deploy.reference import RANDOM_COUNT, Reference, prepare_reference
from toolkit.errors import ModelRejected, ToolkitError, UsageError
from toolkit.reporting import ignore
from toolkit.runs.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A model that passed the gate, its checkpoint and its data."""

    model: Path
    checkpoint: Path
    source: FixedSource
    reference: Reference
    report: Report

    def run_gate(self, content: bytes, **changes: object) -> Report:
        """Run the gate on `content` with the reference, in which `changes` are made."""
        reference = dataclasses.replace(self.reference, **changes)
        checks = Gate(content, min_accuracy=0.5, provider="cpu")
        checks.check_file(reference.class_names)
        checks.check_outputs(reference, note=ignore)
        checks.check_metadata(reference)
        return checks.report(passed=True)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Exactly 9,100 of the 10,000 test images are right."""
    with tiny_model():
        yield made(tmp_path_factory.mktemp("gate"), name="cifar10", test=10_000, wrong=900)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The same with 182 of 200: where the number of images does not matter."""
    with tiny_model():
        yield made(tmp_path_factory.mktemp("few"), name="few", test=200, wrong=18)


def made(folder: Path, *, name: str, test: int, wrong: int) -> Case:
    network = randomize(build_model("tiny"))
    source = source_for(network, test=test, wrong=wrong, name=name)
    checkpoint = write_checkpoint(folder / "best.pt", network, source)
    report = export_onnx(checkpoint, folder / "model.onnx", data=source, min_accuracy=0.91)
    reference = prepare_reference(source, load_checkpoint(checkpoint), note=ignore)
    return Case(folder / "model.onnx", checkpoint, source, reference, report)


def changed(case: Case, change: Callable[[ModelProto], object]) -> bytes:
    model = onnx.load(case.model)
    change(model)
    return model.SerializeToString()


def change_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    def apply(model: ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))

    return apply


def rejected(case: Case, content: bytes, check: str, **changes: object) -> str:
    """The message of the rejection, which must be by `check`, and the last line of its report."""
    with pytest.raises(ModelRejected, match=check) as caught:
        case.run_gate(content, **changes)
    assert isinstance(caught.value, Rejected)
    last = caught.value.report.checks[-1]
    assert (last.name, last.passed) == (check, False)
    assert all(line.passed is not False for line in caught.value.report.checks[:-1])
    assert last.found in str(caught.value)
    assert last.limit in str(caught.value)
    return str(caught.value)


# Limits


def test_9100_of_10000_pass(case: Case) -> None:
    figures = case.report.figures
    assert case.report.passed
    assert (figures.test_correct, figures.required_correct, figures.test_images) == (9_100, 9_100, 10_000)
    assert (figures.reference_correct, figures.differing_labels) == (9_100, 0)


def test_9099_of_10000_are_rejected(case: Case) -> None:
    test = case.source.test()
    labels = test.labels.clone()
    labels[-1] = (labels[-1] + 1) % 10
    source = dataclasses.replace(case.source, test_images=Images(test.images, labels))
    with pytest.raises(Rejected, match=r"accuracy: found 9,099 of 10,000 right; the limit is: at least 9,100 \(0.91\)"):
        verify(case.model, data=source)


def test_without_a_checkpoint_all_but_parity_is_checked(case: Case) -> None:
    report = verify(case.model, data=case.source)
    assert report.passed
    lines = {check.name: check for check in report.checks}
    assert lines["parity with PyTorch"].passed is None
    assert lines["parity with PyTorch"].found == "not checked (no checkpoint)"
    assert not any(name.startswith(("logits", "labels")) for name in lines)
    assert report.figures.max_logit_difference is None
    assert lines["accuracy"].passed
    assert lines["metadata"].passed


def test_the_checks_stand_in_the_order_of_the_contract(case: Case) -> None:
    assert [check.name for check in case.report.checks] == [
        "contents",
        "valid ONNX",
        "interface",
        "precision",
        "test images",
        "ONNX Runtime",
        "batch sizes",
        "same image in another batch",
        "finite outputs",
        "probabilities",
        "logits, random images",
        "labels, random images",
        "logits, test images",
        "labels, test images",
        "accuracy lost",
        "accuracy, 95% interval",
        "macro accuracy",
        "accuracy",
        "metadata",
        "metadata not checked",
    ]
    reported = ("precision", "accuracy, 95% interval", "macro accuracy", "metadata not checked")
    assert {check.passed for check in case.report.checks if check.name not in reported} == {True}


def test_a_report_becomes_json(case: Case) -> None:
    values = json.loads(json.dumps(case.report.as_dict()))
    assert values["passed"] is True
    assert values["checks"][-2] == {
        "name": "metadata",
        "found": "as computed",
        "limit": "every key present, with the computed value",
        "passed": True,
    }
    assert values["figures"]["test_correct"] == 9_100


@pytest.mark.parametrize(
    ("floor", "images", "required"),
    [
        (0.91, 10_000, 9_100),  # 0.91 * 10000 is 9100.000000000002 in binary
        (0.07, 100, 7),  # and 0.07 * 100 is 7.000000000000001
        (0.91, 1_000, 910),
        (0.9101, 1_000, 911),
        (1, 10_000, 10_000),
        (1e-9, 10_000, 1),
    ],
)
def test_the_floor_is_an_exact_count(floor: float, images: int, required: int) -> None:
    assert required_correct(floor, images) == required


# Outputs


def test_a_perturbed_weight_is_rejected(few: Case) -> None:
    def perturb(weight: np.ndarray) -> np.ndarray:
        weight[0, 0, 0, 0] += 0.01
        return weight

    content = changed(few, change_weight("network.stage2.0.conv1.weight", perturb))
    assert "the limit is: at most 0.001" in rejected(few, content, "logits, random images")


def test_swapped_color_channels_are_rejected(few: Case) -> None:
    """A model that is right for BGR images: first convolution and normalization the other way round."""

    def swap(model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "network.conv.weight" or list(tensor.dims) == [1, 3, 1, 1]:
                flipped = numpy_helper.to_array(tensor)[:, ::-1]
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(flipped), tensor.name))

    rejected(few, changed(few, swap), "logits, random images")


def test_a_difference_on_test_images_only_is_rejected(few: Case) -> None:
    assert few.reference.logits is not None
    logits = few.reference.logits.copy()
    logits[-1, 3] += 0.002
    rejected(few, few.model.read_bytes(), "logits, test images", logits=logits)


def with_two_best_exchanged(few: Case, limit: float) -> dict[str, object]:
    """PyTorch's answers, but for one image whose two best logits are within `limit`: those change places."""
    assert few.reference.logits is not None
    logits = few.reference.logits.copy()
    best = np.sort(logits[RANDOM_COUNT + 18 :], axis=1)  # those whose labels are PyTorch's answers
    image = RANDOM_COUNT + 18 + int(np.argmin(best[:, -1] - best[:, -2]))
    second, first = np.argsort(logits[image])[-2:]
    gap = logits[image, first] - logits[image, second]
    assert 0 < gap < limit
    logits[image, [second, first]] = logits[image, [first, second]]
    return {"logits": logits}


def test_the_labels_of_near_ties_may_differ(few: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        TOLERANCES, ("fp32", "cpu"), Tolerances(logit_difference=0.05, points_lost=None, batch_difference=0.05)
    )
    report = few.run_gate(few.model.read_bytes(), **with_two_best_exchanged(few, 0.05))
    assert report.figures.differing_labels == 1


def test_no_other_label_may_differ(few: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = with_two_best_exchanged(few, 0.05)
    monkeypatch.setitem(
        TOLERANCES, ("fp32", "cpu"), Tolerances(logit_difference=0.05, points_lost=None, batch_difference=0.05)
    )
    monkeypatch.setattr(gate, "_find_near_ties", lambda logits, tolerances: np.zeros(len(logits), dtype=bool))
    message = rejected(few, few.model.read_bytes(), "labels, test images", **changes)
    assert "1 of 200 differ" in message


def test_logits_that_are_nan_are_rejected(few: Case) -> None:
    content = changed(few, change_weight("network.linear.bias", lambda bias: bias * np.float32("nan")))
    assert "274 images with NaN or infinity" in rejected(few, content, "finite outputs")


@pytest.fixture
def any_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first check passes everything: what comes after it must not depend on it."""
    monkeypatch.setattr(gate, "find_fault", lambda content: None)


@pytest.mark.usefixtures("any_contents")
def test_probabilities_that_are_no_softmax_of_the_logits_are_rejected(few: Case) -> None:
    def over_the_batch(model: ModelProto) -> None:
        softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
        del softmax.attribute[:]
        softmax.attribute.append(helper.make_attribute("axis", 0))

    rejected(few, changed(few, over_the_batch), "probabilities")


@pytest.mark.usefixtures("any_contents")
@pytest.mark.parametrize("width", [1, 5, 12, 20])
def test_another_number_of_columns_than_is_declared_is_rejected(few: Case, width: int) -> None:
    """A shape that is computed on the way is not seen before the model runs."""
    model = onnx.load(few.model)
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["raw"]
    softmax = list(model.graph.node).index(next(node for node in model.graph.node if node.op_type == "Softmax"))
    halves = np.array([-0.5, width / 2], np.float32)
    for name, values in (("mixing", np.eye(10, width, dtype=np.float32)), ("halves", halves)):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    nodes = [
        helper.make_node("MatMul", ["raw", "mixing"], ["mixed"]),
        helper.make_node("Add", ["halves", "halves"], ["sides"]),
        helper.make_node("Cast", ["sides"], ["shape"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["mixed", "shape"], ["logits"]),
    ]
    rest = list(model.graph.node)[softmax:]
    del model.graph.node[softmax:]
    model.graph.node.extend([*nodes, *rest])
    message = rejected(few, model.SerializeToString(), "batch sizes")
    assert re.search(rf"shape \((\d+), {width}\) for \1 images", message)


def test_the_bytes_do_not_choose_in_which_format_they_are_read(few: Case) -> None:
    """ORTM as the fifth to eighth byte is how ONNX Runtime knows a file of its own format."""
    model = onnx.load(few.model)
    model.producer_name = "ORTM"
    content = model.SerializeToString()
    assert content[4:8] == b"ORTM"
    assert few.run_gate(content).passed


@pytest.mark.usefixtures("any_contents")
def test_a_batch_that_is_baked_in_is_rejected(few: Case) -> None:
    def bake(model: ModelProto) -> None:
        reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
        change_weight(reshape.input[1], lambda shape: np.array([1, 8], dtype=np.int64))(model)

    model = onnx.load(few.model)
    bake(model)
    assert re.search(r"found with \d+ images: ", rejected(few, model.SerializeToString(), "batch sizes"))


def test_fewer_images_than_the_whole_test_set_are_rejected(case: Case) -> None:
    test = case.source.test()
    source = dataclasses.replace(case.source, test_images=Images(test.images[:9_999], test.labels[:9_999]))
    with pytest.raises(Rejected, match=r"found 9,999 of cifar10; the limit is: the whole set of 10,000"):
        verify(case.model, data=source)


# Metadata


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("key", "forged"),
    [
        ("model", "resnet20"),
        ("recipe", "{}"),
        ("precision", "int8"),
        ("input", "float-nchw"),
        ("data", '{"name": "cifar10", "train_sha256": "00"}'),
        ("test_sha256", "00"),
        ("test_images", "10001"),
        ("test_correct", "9200"),
        ("test_correct", "all"),
        ("test_accuracy", "0.9900"),
        ("test_accuracy", "0.91"),
        ("val_accuracy", "0.9999"),
        ("min_accuracy", "0.95"),
        ("min_accuracy", "nan"),
        ("parity_max_logit_difference", "0.5"),
        ("parity_max_logit_difference", "none"),
        ("parity_differing_labels", "1000"),
        ("checkpoint_sha256", "00"),
    ],
)
def test_forged_metadata_are_rejected(few: Case, key: str, forged: str) -> None:
    def forge(model: ModelProto) -> None:
        next(item for item in model.metadata_props if item.key == f"cifar.{key}").value = forged

    assert f"cifar.{key} is {forged}, computed: " in rejected(few, changed(few, forge), "metadata")


def test_a_model_of_other_classes_is_rejected_before_it_is_run(few: Case) -> None:
    def forge(model: ModelProto) -> None:
        next(item for item in model.metadata_props if item.key == "cifar.class_names").value = '["cat", "dog"]'

    message = rejected(few, changed(few, forge), "classes")
    assert 'found ["cat", "dog"]; the limit is: ["class0", ' in message
    assert message.endswith("Name the data that the model was trained on with --data")


def test_missing_metadata_are_rejected(few: Case) -> None:
    def drop(model: ModelProto) -> None:
        kept = [item for item in model.metadata_props if item.key != "cifar.recipe"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    assert "found cifar.recipe is missing; the limit" in rejected(few, changed(few, drop), "metadata")


def test_unknown_metadata_are_rejected(few: Case) -> None:
    content = changed(few, lambda model: model.metadata_props.add(key="cifar.license", value="free"))
    assert "has the metadata key 'cifar.license'" in rejected(few, content, "contents")
    calibrated = changed(few, lambda model: model.metadata_props.add(key="cifar.calibration", value="{}"))
    assert "cifar.calibration is unknown" in rejected(few, calibrated, "metadata")  # a float32 model has none


@pytest.mark.hostile
def test_metadata_given_twice_are_rejected(few: Case) -> None:
    content = changed(few, lambda model: model.metadata_props.add(key="cifar.model", value="tiny"))
    assert "metadata key cifar.model twice" in rejected(few, content, "contents")


def test_data_are_found_by_the_identity_in_the_file_which_is_read_once(few: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(few.model.read_bytes())

    def find(identity: Mapping[str, str]) -> FixedSource:
        assert identity == few.reference.data
        path.unlink()
        return few.source

    assert verify(path, data=find).passed


def test_data_are_found_only_after_the_other_arguments_were_checked(few: Case, tmp_path: Path) -> None:
    def find(identity: Mapping[str, str]) -> FixedSource:
        raise AssertionError

    with pytest.raises(UsageError, match="unknown opset 7"):
        export_onnx(few.checkpoint, tmp_path / "model.onnx", data=find, opset=7)
    with pytest.raises(UsageError, match="the minimum accuracy is 2"):
        verify(few.model, data=find, min_accuracy=2)


# The graph that the checkpoint gives


def test_the_graph_of_the_checkpoint_is_built_again_and_compared(few: Case) -> None:
    report = verify(few.model, data=few.source, checkpoint=few.checkpoint)
    assert next(check for check in report.checks if check.name == "graph") == Check(
        "graph", "27 nodes", "the nodes and weights that the checkpoint gives", True
    )


def test_a_graph_that_differs_is_rejected_with_its_first_node(few: Case, tmp_path: Path) -> None:
    """By less than any limit of the outputs, in two places."""

    def perturb(model: ModelProto) -> None:
        for name in ("network.stage2.0.conv1.weight", "network.stage3.0.conv1.weight"):
            change_weight(name, lambda weight: np.nextafter(weight, np.float32(9)))(model)

    path = tmp_path / "model.onnx"
    path.write_bytes(changed(few, perturb))
    assert verify(path, data=few.source).passed
    with pytest.raises(Rejected, match=r"graph: found node \w+ \(Conv\): its weights differ by up to .*e-0") as caught:
        verify(path, data=few.source, checkpoint=few.checkpoint)
    model = onnx.load(path)
    first = next(node.name for node in model.graph.node if "network.stage2.0.conv1.weight" in node.input)
    assert first in str(caught.value)


# Batches


def test_batches_are_drawn_anew_and_the_draw_is_reported(few: Case) -> None:
    first, second = (few.run_gate(few.model.read_bytes()) for _ in range(2))
    assert first.figures.batch_seed != second.figures.batch_seed
    lines = {check.name: check.found for check in first.checks}
    assert lines["batch sizes"].endswith(f" of 1 to 64 images, drawn with seed {first.figures.batch_seed}")
    assert lines["same image in another batch"].startswith("logits of 80 images differ by up to ")


@pytest.mark.parametrize("images", [1, 10, 300, 10_074])
def test_a_draw_holds_every_image_and_some_twice(images: int) -> None:
    batches = draw_batches(images, seed=1)
    counts = np.bincount(np.concatenate(batches), minlength=images)
    assert counts.min() >= 1
    assert counts.sum() == images + min(64, images) + 2 * min(8, images)
    assert max(len(batch) for batch in batches) <= 64
    assert images < 300 or {1, 2, 16, 64} <= {len(batch) for batch in batches}
    assert any(len(np.unique(batch)) < len(batch) for batch in batches)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in draw_batches(images, seed=1)]
    assert images == 1 or [batch.tolist() for batch in batches] != [x.tolist() for x in draw_batches(images, seed=2)]


@pytest.mark.usefixtures("any_contents")
def test_logits_that_depend_on_the_batch_are_rejected(few: Case) -> None:
    """The mean over the batch, times a small number, is added to the logits of every picture in it."""
    model = onnx.load(few.model)
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["raw"]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "batch_axis"))
    softmax = model.graph.node.pop()
    added = [
        helper.make_node("ReduceMean", ["raw", "batch_axis"], ["mean"]),
        helper.make_node("Add", ["raw", "mean"], ["logits"]),
    ]
    model.graph.node.extend([*added, softmax])
    assert "the limit is: at most 0.001" in rejected(few, model.SerializeToString(), "same image in another batch")


# Precision


def test_a_dequantize_that_leads_nowhere_is_not_int8(few: Case) -> None:
    def dangle(model: ModelProto) -> None:
        values = {"q": np.array([1], np.int8), "scale": np.array([1], np.float32), "point": np.array([0], np.int8)}
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
        model.graph.node.append(helper.make_node("DequantizeLinear", [*values], ["dangling"], axis=0))
        change_weight("network.linear.weight", lambda weight: weight * 50)(model)

    content = changed(few, dangle)
    assert detect_precision(onnx.load_from_string(content)) == "fp32"
    rejected(few, content, "contents")


# The file as a file


def rename_output(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].input[0] = "scores"
    next(node for node in model.graph.node if "logits" in node.output).output[0] = "scores"


def fix_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def add_function(model: ModelProto) -> None:
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("", "Half", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))


def add_subgraph(model: ModelProto) -> None:
    def branch(name: str) -> onnx.GraphProto:
        value = helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
        node = helper.make_node("Constant", [], [name], value=value)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])])

    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=branch("a"), else_branch=branch("b")))


def add_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def add_operator(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormal", [], ["noise"], shape=[1]))


def move_weights_out(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("change", "check", "found"),
    [
        (rename_output, "interface", "-> scores float32"),
        (fix_batch, "contents", r"has an input images \(1, 32, 32, 3\)"),
        (add_function, "contents", "contains a function"),
        (add_subgraph, "contents", "contains a subgraph"),
        (add_domain, "contents", "uses the operator domain com.microsoft"),
        (add_operator, "contents", "operator RandomNormal"),
        (move_weights_out, "contents", "contains weights outside the file"),
    ],
)
def test_a_graph_with_disallowed_features_is_rejected(
    few: Case, change: Callable[[ModelProto], None], check: str, found: str
) -> None:
    with pytest.raises(Rejected, match=found) as caught:
        few.run_gate(changed(few, change))
    assert caught.value.report.checks[-1].name == check


@pytest.mark.hostile
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\x00" * 1000, b"not a model"])
def test_foreign_files_are_rejected(few: Case, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelRejected if content else ToolkitError, match="contents|valid ONNX|is empty"):
        verify(path, data=few.source)


@pytest.mark.hostile
def test_truncated_files_are_rejected(few: Case) -> None:
    content = few.model.read_bytes()
    for length in [len(content) * part // 8 for part in range(8)] + [len(content) - 1]:
        with pytest.raises(Rejected):
            few.run_gate(content[:length])


@pytest.mark.hostile
def test_a_sparse_file_of_two_gigabytes_is_not_read(few: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(ToolkitError, match="has 2,147,483,648 bytes; at most 16,777,216 are read"):
        verify(path, data=few.source)


@pytest.mark.hostile
def test_no_file_and_no_regular_file_are_errors(few: Case, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="No such file") as caught:
        verify(tmp_path / "none.onnx", data=few.source)
    assert caught.value.exit_code == 1
    with pytest.raises(ToolkitError, match="is a folder, not a file"):
        verify(tmp_path, data=few.source)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ToolkitError, match="is a pipe"):
            verify(tmp_path / "pipe", data=few.source)


def test_a_checkpoint_in_place_of_the_model_is_named_with_the_command_that_exports_it(few: Case) -> None:
    with pytest.raises(ToolkitError, match=r"is a checkpoint, not an ONNX file; export it first, with `cifar export "):
        verify(few.checkpoint, data=few.source)


# Arguments


def test_other_data_than_the_checkpoints_are_refused(few: Case) -> None:
    train = few.source.train()
    other = dataclasses.replace(few.source, train_images=Images(train.images.flip(0), train.labels))
    with pytest.raises(ToolkitError, match="was trained on few") as caught:
        verify(few.model, data=other, checkpoint=few.checkpoint)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("floor", [float("nan"), 91, -1, 0, float("inf")])
def test_an_impossible_floor_is_wrong_usage(few: Case, floor: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        verify(few.model, data=few.source, min_accuracy=floor)


def test_an_unknown_provider_is_wrong_usage(few: Case) -> None:
    with pytest.raises(UsageError, match="the providers are cpu, cuda"):
        verify(few.model, data=few.source, provider="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_a_provider_that_does_not_run_is_an_error_and_no_fallback(few: Case) -> None:
    with pytest.raises(ToolkitError, match="CUDAExecutionProvider") as caught:
        verify(few.model, data=few.source, provider="cuda")
    assert caught.value.exit_code == 1


@pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs a GPU",
)
def test_cuda_passes_its_own_column(few: Case) -> None:
    report = verify(few.model, data=few.source, checkpoint=few.checkpoint, provider="cuda")
    assert report.figures.provider == "cuda"
