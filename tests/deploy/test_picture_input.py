"""`--input picture`: the picture rule inside the graph gives the pixels of Pillow, and the gate notices where not."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto
from PIL import Image

from models import build_model
from tests.support.deploy import Case, randomize, tiny_case, tiny_model
from toolkit.deploy import Rejected, export_onnx, graph, verify
from toolkit.deploy.export import OPSETS, export_graph
from toolkit.deploy.odd_pictures import draw_edges, draw_photograph, draw_pictures
from toolkit.deploy.picture_input import TESTED_RUNTIME, expose_pixels, prepend_picture_input
from toolkit.inference import Classifier, open_model, prepare
from toolkit.serving.page.render import _runtime

pytestmark = pytest.mark.slow

SIZES = [(1, 1), (1, 300), (300, 1), (31, 33), (32, 32), (33, 31), (97, 150), (150, 97)]


def small_pictures() -> Iterator[np.ndarray]:
    generator = np.random.default_rng(1)
    for width, height in SIZES:
        yield draw_photograph(generator, width, height)
        yield draw_edges(width, height)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's own set has a picture of 12 megapixels, which takes seconds to draw."""
    monkeypatch.setattr("toolkit.deploy.gate.draw_pictures", small_pictures)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with tiny_case(tmp_path_factory.mktemp("run"), test=60, doubtful=40) as case:
        yield case


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "picture.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.deploy.gate.draw_pictures", small_pictures)
        export_onnx(case.checkpoint, path, data=case.source, input_format="picture")
    return path


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_pixels_are_those_of_the_picture_rule(opset: int) -> None:
    with tiny_model():
        model = prepend_picture_input(export_graph(randomize(build_model("tiny")), opset=opset))
    assert graph.find_invalid(model.SerializeToString()) is None
    assert graph.describe_interface(model) == (
        "picture uint8 (height, width, 3) -> logits float32 (1, 10), probabilities float32 (1, 10)"
    )
    content = expose_pixels(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for picture in small_pictures():
        (pixels,) = session.run(["images"], {"picture": picture})
        expected = prepare(Image.fromarray(picture))
        tolerance = 0 if picture.shape == (32, 32, 3) else 1
        np.testing.assert_allclose(pixels[0].astype(int), expected, rtol=0, atol=tolerance, err_msg=str(picture.shape))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_passes_the_gate(case: Case, tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "min_accuracy": 0.5}
    report = export_onnx(case.checkpoint, tmp_path / "p.onnx", data=case.source, input_format="picture", **options)
    images = export_onnx(case.checkpoint, tmp_path / "i.onnx", data=case.source, **options)
    ours, theirs = dataclasses.asdict(report.figures), dataclasses.asdict(images.figures)
    assert ours.pop("max_logit_difference") == pytest.approx(theirs["max_logit_difference"], abs=1e-4)
    same = {name for name, value in ours.items() if value == theirs[name]}
    own = {"batch_seed", "bytes", "sha256", "input", "pixels_compared", "pixels_differing", "largest_pixel_difference"}
    assert ours.keys() - same == own
    assert (ours["input"], ours["pixels_compared"]) == ("picture", 2 * len(SIZES) * 32 * 32 * 3)
    assert ours["largest_pixel_difference"] <= 1
    lines = {check.name: check for check in report.checks}
    assert lines["pixels"].passed
    assert f"of 49,152 differ in {2 * len(SIZES)} pictures" in lines["pixels"].found
    assert lines["logits, synthetic pictures"].passed


def test_the_file_names_the_runtimes_of_its_checks(exported: Path, case: Case) -> None:
    metadata = open_model(exported).metadata
    assert metadata["input"] == "picture"
    assert json.loads(metadata["runtimes"]) == [f"onnxruntime {onnxruntime.__version__}", TESTED_RUNTIME]
    report = verify(exported, data=case.source, checkpoint=case.checkpoint)
    assert report.checks[-1].found == "toolkit_version, date, runtimes"


def test_the_tested_runtime_is_the_one_that_the_page_carries() -> None:
    assert f"onnxruntime-web {_runtime()['version']}" == TESTED_RUNTIME


def test_a_picture_is_classified_as_by_the_uint8_form(exported: Path, case: Case, tmp_path: Path) -> None:
    export_onnx(case.checkpoint, tmp_path / "images.onnx", data=case.source)
    whole, resized = Classifier(exported, "cpu"), Classifier(tmp_path / "images.onnx", "cpu")
    pictures = list(small_pictures())
    for ours, theirs in zip(whole.predict(pictures), resized.predict(pictures), strict=True):
        assert ours.label == theirs.label
        assert ours.probability == pytest.approx(theirs.probability, abs=0.02)


# The gate


def node(model: ModelProto, kind: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def set_attribute(name: str, value: object) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        resize = node(model, "Resize")
        kept = [attribute for attribute in resize.attribute if attribute.name != name]
        del resize.attribute[:]
        resize.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def take_the_top_left_square(model: ModelProto) -> None:
    node(model, "Div").op_type = "Mul"
    two = next(tensor for tensor in model.graph.initializer if tensor.name == "picture_two")
    two.CopyFrom(onnx.numpy_helper.from_array(np.array([0]), "picture_two"))


def show_other_pixels_than_the_network_receives(model: ModelProto) -> None:
    """`images` is right; the network receives a center square that another filter resized."""
    index = [one.op_type for one in model.graph.node].index("Resize")
    copies = [NodeProto.FromString(one.SerializeToString()) for one in model.graph.node[index : index + 2]]
    copies[0].output[0] = copies[1].input[0] = "other_resized"
    copies[1].output[0] = "other_images"
    next(attribute for attribute in copies[0].attribute if attribute.name == "cubic_coeff_a").f = -1.0
    for one in model.graph.node[index + 2 :]:
        one.input[:] = ["other_images" if name == "images" else name for name in one.input]
    for offset, one in enumerate(copies):
        one.name = f"other_{offset}"
        model.graph.node.insert(index + 2 + offset, one)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (set_attribute("antialias", 0), "pixels"),
        (set_attribute("exclude_outside", 0), "pixels"),
        (set_attribute("cubic_coeff_a", -0.75), "pixels"),
        (set_attribute("mode", "linear"), "pixels"),
        (take_the_top_left_square, "pixels"),
        (show_other_pixels_than_the_network_receives, "logits, synthetic pictures"),
    ],
)
@pytest.mark.parametrize("contents_are_checked", [True, False])
def test_another_resizing_is_rejected(
    exported: Path,
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ModelProto], None],
    check: str,
    contents_are_checked: bool,
) -> None:
    if not contents_are_checked:
        monkeypatch.setattr("toolkit.deploy.gate.find_fault", lambda content: None)
    model = onnx.load(exported)
    change(model)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(Rejected) as caught:
        verify(tmp_path / "changed.onnx", data=case.source)
    assert caught.value.report.checks[-1].name == ("contents" if contents_are_checked else check)


def test_pixels_that_the_network_does_not_receive_are_rejected(
    exported: Path, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.deploy.gate.find_fault", lambda content: None)  # which finds the second Resize
    model = onnx.load(exported)
    show_other_pixels_than_the_network_receives(model)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(Rejected, match="logits, synthetic pictures: found .* from those of their 32x32 pixels"):
        verify(tmp_path / "changed.onnx", data=case.source)


# The synthetic pictures


def test_the_drawn_pictures_are_the_same_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.deploy.odd_pictures.TWELVE_MEGAPIXELS", (40, 30))
    first, second = list(draw_pictures()), list(draw_pictures())
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert {picture.dtype for picture in first} == {np.dtype(np.uint8)}
    shapes = {picture.shape for picture in first}
    assert {(1, 1, 3), (3000, 1, 3), (33, 31, 3), (640, 480, 3), (480, 640, 3), (30, 40, 3)} <= shapes
