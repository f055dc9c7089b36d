"""Export: the graph computes what the network computes, the file is lean, and nothing appears that the gate refused."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models import MODELS, build_model
from tests.support.deploy import (
    Case,
    blocky_images,
    randomize,
    tiny_case,
    tiny_model,
    torchvision_logits,
    write_checkpoint,
)
from tests.support.sources import ROOT, FixedSource
from toolkit import __version__
from toolkit.data.cifar import CLASS_NAMES
from toolkit.data.dataset import identify_data
from toolkit.data.images import Images
from toolkit.deploy import Rejected, export_onnx, verify
from toolkit.deploy.export import OPSET, OPSETS, export_graph
from toolkit.errors import ToolkitError, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with tiny_case(tmp_path_factory.mktemp("run"), test=300) as case:
        yield case


def run(model: onnx.ModelProto, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    return logits, probabilities


@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_parity_on_random_weights(name: str) -> None:
    network = randomize(build_model(name))
    model = export_graph(network)
    assert not {"BatchNormalization", "Range", "Gather"} & {node.op_type for node in model.graph.node}
    for batch in (1, 2, 7, 64):
        images = blocky_images(batch, seed=batch)
        expected = torchvision_logits(network, images)
        logits, probabilities = run(model, images.permute(0, 2, 3, 1).numpy())
        assert logits.shape == probabilities.shape == (batch, 10)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-5)


def test_float_input_keeps_parity_too() -> None:
    with tiny_model():
        network = randomize(build_model("tiny"))
        model = export_graph(network, input_format="float-nchw")
    images = blocky_images(7, seed=0)
    logits, _ = run(model, images.numpy().astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(logits, torchvision_logits(network, images), atol=1e-4)


def test_the_network_is_left_as_it_is() -> None:
    with tiny_model():
        network = randomize(build_model("tiny"))
    before = str(network), {name: value.clone() for name, value in network.state_dict().items()}
    export_graph(network)
    assert str(network) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in network.state_dict().items())


def test_the_exporter_is_quiet_and_deterministic(capfd: pytest.CaptureFixture[str]) -> None:
    with tiny_model():
        network = randomize(build_model("tiny"))
        first, second = export_graph(network), export_graph(network)
    assert capfd.readouterr() == ("", "")
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_resnet20_is_one_lean_file_without_traces_of_this_machine() -> None:
    model = export_graph(build_model("resnet20").eval())
    content = model.SerializeToString()
    assert len(content) < 1_300_000
    for trace in [str(ROOT), str(Path(torch.__file__).parent), "site-packages", 'File "', "stack_trace", ", line "]:
        assert trace.encode() not in content
    assert not model.functions
    assert not model.graph.value_info
    assert not any(part.doc_string or part.metadata_props for part in [model, model.graph, *model.graph.node])
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]


def test_the_file_is_what_the_gate_read_and_says_what_it_computed(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "new" / "model.onnx"
    told: list[str] = []
    report = export_onnx(case.checkpoint, output, data=case.source, note=told.append)
    content = output.read_bytes()
    assert report.passed
    assert report.figures.sha256 == hashlib.sha256(content).hexdigest()
    assert report.figures.bytes == len(content)
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]
    assert any("300 test images" in line for line in told)

    metadata = {item.key: item.value for item in onnx.load(output).metadata_props}
    difference = float(metadata.pop("cifar.parity_max_logit_difference"))
    assert 0 <= difference < 1e-4
    age = datetime.now(UTC).date() - date.fromisoformat(metadata.pop("cifar.date"))
    assert timedelta(0) <= age <= timedelta(1)  # the test may run over midnight
    test = case.source.test()
    identity = identify_data("blocks", case.source.train())
    assert {key: _plain(value) for key, value in metadata.items()} == {
        "cifar.class_names": list(case.source.class_names),
        "cifar.model": "tiny",
        "cifar.recipe": {"optimizer": "SGD", "learning_rate": 0.1, "run": {"model": "tiny", "seed": 0}},
        "cifar.precision": "fp32",
        "cifar.input": "uint8-nhwc",
        "cifar.data": identity,
        "cifar.test_sha256": hashlib.sha256(test.images.numpy().tobytes() + test.labels.numpy().tobytes()).hexdigest(),
        "cifar.test_accuracy": "1.0000",
        "cifar.test_correct": "300",
        "cifar.test_images": "300",
        "cifar.val_accuracy": "0.6250",
        "cifar.min_accuracy": "0.91",
        "cifar.parity_differing_labels": "0",
        "cifar.checkpoint_sha256": hashlib.sha256(case.checkpoint.read_bytes()).hexdigest(),
        "cifar.toolkit_version": __version__,
    }


def _plain(value: str) -> object:
    return json.loads(value) if value[0] in "[{" else value


@pytest.mark.parametrize(("opset", "input"), zip(OPSETS, ["float-nchw", "uint8-nhwc"] * 2, strict=True))
def test_every_opset_and_input_passes_the_gate(case: Case, tmp_path: Path, opset: int, input: str) -> None:
    report = export_onnx(case.checkpoint, tmp_path / "model.onnx", data=case.source, opset=opset, input_format=input)
    assert (report.figures.opset, report.figures.input) == (opset, input)


def rejected_export(case: Case, output: Path) -> Rejected:
    """An export that is right on 270 of 300 images, and must be on 271."""
    test = case.source.test()
    labels = test.labels.clone()
    labels[:30] = (labels[:30] + 1) % 10
    source = FixedSource("blocks", None, case.source.class_names, case.source.train(), Images(test.images, labels))
    with pytest.raises(Rejected) as caught:
        export_onnx(case.checkpoint, output, data=source, min_accuracy=0.901)
    return caught.value


@pytest.mark.hostile
def test_a_rejected_model_leaves_what_was_there(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_bytes(b"a model that works")
    error = rejected_export(case, output)
    assert error.exit_code == 3
    assert "accuracy: found 270 of 300 right; the limit is: at least 271 (0.901)" in str(error)
    assert not error.report.passed
    assert output.read_bytes() == b"a model that works"
    assert list(tmp_path.iterdir()) == [output]


def test_a_rejected_model_leaves_nothing_where_nothing_was(case: Case, tmp_path: Path) -> None:
    rejected_export(case, tmp_path / "new" / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_changes_on_its_way_to_the_disk_is_not_written(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures belong to the checked graph: a file with another graph must not carry them."""

    def damage(path: Path) -> bytes:
        model = onnx.load(path)
        model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
        return model.SerializeToString(deterministic=True)

    monkeypatch.setattr("toolkit.deploy.export.read_model_bytes", damage)
    with pytest.raises(ToolkitError, match="differs from the checked model"):
        export_onnx(case.checkpoint, tmp_path / "model.onnx", data=case.source)
    assert not list(tmp_path.iterdir())


@pytest.mark.hostile
def test_a_checkpoint_that_is_replaced_during_the_export_is_not_mixed_with_the_first(
    case: Case, tmp_path: Path
) -> None:
    """As a training run does: a rename in the midst of the work. The file is all of the first, and says so."""
    checkpoint, output = tmp_path / "best.pt", tmp_path / "model.onnx"
    checkpoint.write_bytes(case.checkpoint.read_bytes())
    first, stages = hashlib.sha256(checkpoint.read_bytes()).hexdigest(), []

    def replace_checkpoint(stage: str) -> None:
        stages.append(stage)
        other = randomize(build_model("tiny"), seed=len(stages))
        write_checkpoint(tmp_path / "new.pt", other, case.source).replace(checkpoint)

    export_onnx(checkpoint, output, data=case.source, min_accuracy=0.5, note=replace_checkpoint)
    assert len(stages) > 2
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() != first
    metadata = {item.key: item.value for item in onnx.load(output).metadata_props}
    assert metadata["cifar.checkpoint_sha256"] == first
    assert verify(output, data=case.source, checkpoint=case.checkpoint, min_accuracy=0.5).passed
    with pytest.raises(Rejected, match="graph"):
        verify(output, data=case.source, checkpoint=checkpoint, min_accuracy=0.5)


@pytest.mark.hostile
def test_an_interrupted_export_leaves_nothing(case: Case, tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if message.startswith("ONNX Runtime"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_onnx(case.checkpoint, tmp_path / "model.onnx", data=case.source, note=interrupt)
    assert not list(tmp_path.iterdir())


def test_other_data_are_refused(case: Case, tmp_path: Path) -> None:
    other = FixedSource("cifar10", None, CLASS_NAMES, case.source.train(), case.source.test())
    with pytest.raises(ToolkitError, match="trained on blocks .*but these data are cifar10") as caught:
        export_onnx(case.checkpoint, tmp_path / "model.onnx", data=other)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_accuracy": float("nan")}, "the minimum accuracy is nan"),
        ({"min_accuracy": 91}, "at most 1, such as 0.91"),
        ({"min_accuracy": -1}, "the minimum accuracy is -1"),
        ({"min_accuracy": 0}, "above 0"),
        ({"precision": "fp8"}, "valid are fp32, fp16, int8"),
        ({"target": "tpu"}, "valid are cpu, gpu"),
        ({"input_format": "nchw"}, "valid are uint8-nhwc, float-nchw, picture"),
        ({"opset": 17}, "valid are 18, 19, 20, 21"),
        ({"provider": "rocm"}, "the providers are cpu, cuda"),
    ],
)
def test_impossible_arguments_are_wrong_usage(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_onnx(Path("none.pt"), tmp_path / "model.onnx", data=FixedSource("x", None, CLASS_NAMES), **arguments)
