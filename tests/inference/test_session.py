"""Opening models: providers, the interface, and files that are not what they say."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.support.onnx_models import external, picture_model, saved, tiny_model
from toolkit.data.cifar import CLASS_NAMES
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference import find_model, open_model
from toolkit.inference import session as session_module
from toolkit.inference.model_file import MAX_MODEL_BYTES, read_model

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
LOGITS = PICTURES.mean(axis=(1, 2))[:, np.arange(10) % 3] * 0.1


@pytest.mark.parametrize("float_nchw", [False, True])
def test_both_input_forms_take_the_same_pictures(tmp_path: Path, float_nchw: bool) -> None:
    session = open_model(saved(tmp_path, tiny_model(float_nchw=float_nchw)), provider="cpu")
    logits, probabilities = session.logits_and_probabilities(PICTURES)
    np.testing.assert_allclose(logits, LOGITS, rtol=1e-4)
    np.testing.assert_allclose(probabilities, np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True), rtol=1e-3)
    assert logits.dtype == probabilities.dtype == np.float32
    assert session.input_format == ("float-nchw" if float_nchw else "uint8-nhwc")


def test_a_model_of_pictures_takes_any_size(tmp_path: Path) -> None:
    session = open_model(saved(tmp_path, picture_model()), provider="cpu")
    assert (session.input_format, session.takes_pictures) == ("picture", True)
    np.testing.assert_allclose(session.logits_and_probabilities(PICTURES)[0], LOGITS, rtol=1e-4)
    stripes = np.zeros((2, 10, 30, 3), np.uint8)
    stripes[0, :, 10:20] = 200  # the center square
    logits, probabilities = session.logits_and_probabilities(stripes)
    np.testing.assert_allclose(logits, np.repeat([[20], [0]], 10, axis=1), rtol=1e-4)
    np.testing.assert_allclose(probabilities, np.full((2, 10), 0.1), rtol=1e-4)
    for empty in (stripes[:, :0], stripes[:, :, :0], stripes[0], stripes.astype(np.float32)):
        with pytest.raises(UsageError, match=r"must be uint8 \(N, height, width, 3\), not"):
            session.logits_and_probabilities(empty)


def test_what_a_session_says(tmp_path: Path) -> None:
    session = open_model(saved(tmp_path, tiny_model()), provider="cpu", threads=1)
    assert (session.provider, session.note, session.threads) == ("cpu", None, 1)
    assert session.class_names == CLASS_NAMES
    assert session.metadata["model"] == "tiny"
    with pytest.raises(FrozenInstanceError):
        session.provider = "cuda"  # type: ignore[misc]


@pytest.mark.parametrize("images", [PICTURES[0], PICTURES.astype(np.float32), PICTURES[:, :16]])
def test_other_arrays_are_wrong_usage(tmp_path: Path, images: Any) -> None:
    with pytest.raises(UsageError, match=r"must be uint8 \(N, 32, 32, 3\), not"):
        open_model(saved(tmp_path, tiny_model()), provider="cpu").logits_and_probabilities(images)


def test_many_threads_share_a_session(tmp_path: Path) -> None:
    session = open_model(saved(tmp_path, tiny_model()), provider="cpu")
    expected = session.logits_and_probabilities(PICTURES)[0]
    with ThreadPoolExecutor(8) as pool:
        for logits, _ in pool.map(session.logits_and_probabilities, [PICTURES] * 100):
            np.testing.assert_array_equal(logits, expected)


# Providers.


def test_unknown_provider_and_no_threads_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown provider 'gpu'; choose one of auto, cpu, cuda, tensorrt"):
        open_model(tmp_path / "any", provider="gpu")
    with pytest.raises(UsageError, match="threads must be at least 1"):
        open_model(tmp_path / "any", threads=0)


@pytest.fixture
def gpu_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that shows a GPU, and an ONNX Runtime that was built for it: opening must still be seen to fail."""
    monkeypatch.setattr(session_module, "_nvidia_gpu", lambda: True)
    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: every)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas"), raising=False)


@pytest.fixture
def gpu_falls_back(monkeypatch: pytest.MonkeyPatch, gpu_is_announced: None) -> None:
    start = session_module._start
    monkeypatch.setattr(
        session_module, "_start", lambda content, options, _: start(content, options, [session_module._CPU])
    )


@pytest.mark.usefixtures("gpu_falls_back")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_fallback_is_an_error_when_a_gpu_was_asked_for(tmp_path: Path, provider: str) -> None:
    path = saved(tmp_path, tiny_model())
    with pytest.raises(ToolkitError, match=f"{provider} could not be opened .*libcublas.*--provider cpu"):
        open_model(path, provider=provider)


@pytest.mark.usefixtures("gpu_falls_back")
def test_a_fallback_is_a_note_under_auto(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = open_model(saved(tmp_path, tiny_model()), provider="auto")
    assert session.provider == "cpu"
    assert session.note is not None
    assert "cuda could not be opened (Failed to load libcublas)" in session.note
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("gpu_is_announced")
def test_what_opens_on_a_gpu_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chains = []

    class OnCuda(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, content: bytes, options: Any, *, providers: list[Any], **more: Any) -> None:
            chains.append(providers)
            super().__init__(content, options, providers=["CPUExecutionProvider"], **more)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda)
    path = saved(tmp_path, tiny_model())
    assert open_model(path).provider == open_model(path, provider="cuda").provider == "cuda"
    assert open_model(path).note is None
    assert chains[0][0] == ("CUDAExecutionProvider", {"use_tf32": "0"})
    with pytest.raises(ToolkitError, match=r"tensorrt could not be opened .*libcublas"):
        open_model(path, provider="tensorrt")


def test_no_driver_or_no_gpu_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, tiny_model())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ToolkitError, match="was built without cuda; install onnxruntime-gpu"):
        open_model(path, provider="cuda")
    assert open_model(path).note is None
    monkeypatch.setattr(session_module, "_offered", lambda provider: True)
    monkeypatch.setattr(session_module, "_nvidia_gpu", lambda: False)
    with pytest.raises(ToolkitError, match="no NVIDIA driver with a GPU was found"):
        open_model(path, provider="tensorrt")
    assert open_model(path).note is None  # without a GPU there is nothing to explain


# Damaged and foreign files.


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("model", "found"),
    [
        (tiny_model(images="x"), r"inputs x tensor\(uint8\)"),
        (tiny_model(images="pictures"), r"inputs pictures tensor\(uint8\)"),
    ],
)
def test_another_interface(tmp_path: Path, model: onnx.ModelProto, found: str) -> None:
    with pytest.raises(ToolkitError, match=f"model.onnx .*Found: .*{found}.*Expected: input images, uint8"):
        open_model(saved(tmp_path, model), provider="cpu")


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("model", "found"),
    [
        (tiny_model(batch=1), r"has an input images \(1, 32, 32, 3\), where a model of this toolkit takes pictures"),
        (tiny_model(images="\x1b[31m"), r"has the name or text '\\x1b\[31m', which is not printable"),
    ],
)
def test_an_input_that_is_refused_before_the_model_is_opened(
    tmp_path: Path, model: onnx.ModelProto, found: str
) -> None:
    with pytest.raises(ToolkitError, match=f"model.onnx {found}"):
        open_model(saved(tmp_path, model), provider="cpu")


@pytest.mark.hostile
@pytest.mark.parametrize(
    "names",
    [None, "cat", "[]", '["cat"]', json.dumps(["cat"] * 10), json.dumps([*CLASS_NAMES[:9], "\x1b[31m"]), "[" * 9999],
)
def test_every_output_needs_a_plain_name(tmp_path: Path, names: str | None) -> None:
    metadata = {} if names is None else {"class_names": names}
    with pytest.raises(ToolkitError, match="does not name its 10 outputs"):
        open_model(saved(tmp_path, tiny_model(metadata=metadata)), provider="cpu")


@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    names = [f"class{number}" for number in range(classes)]
    model = tiny_model(classes=classes, metadata={"class_names": json.dumps(names)})
    session = open_model(saved(tmp_path, model), provider="cpu")
    logits, probabilities = session.logits_and_probabilities(np.zeros((3, 32, 32, 3), np.uint8))
    assert session.class_names == tuple(names)
    assert logits.shape == probabilities.shape == (3, classes)


@pytest.mark.parametrize("classes", [1, 1001])
def test_too_few_and_too_many_classes(tmp_path: Path, classes: int) -> None:
    with pytest.raises(ToolkitError, match=f"{classes}.*Expected: .*K"):
        open_model(saved(tmp_path, tiny_model(classes=classes)), provider="cpu")


@pytest.mark.hostile
@pytest.mark.parametrize("text", [b"images", b"logits", b"tiny", b"cifar.model"])
def test_names_and_properties_that_are_no_text(tmp_path: Path, text: bytes) -> None:
    path = saved(tmp_path, tiny_model())
    path.write_bytes(path.read_bytes().replace(text, b"\x80" + text[1:]))
    if text == b"tiny":  # the graph's own name and one property
        assert path.read_bytes().count(b"\x80iny") == 2
    with pytest.raises(ToolkitError):
        open_model(path, provider="cpu")


@pytest.mark.hostile
@pytest.mark.parametrize("cut", [1, 50, 400])
def test_truncated(tmp_path: Path, cut: int) -> None:
    path = saved(tmp_path, tiny_model())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ToolkitError):
        open_model(path, provider="cpu")


@pytest.mark.hostile
@pytest.mark.parametrize(
    "content", [b"hello", b"\x80\x04pickle", b"\x89PNG\r\n\x1a\n", b"\0" * 1000, b"\x08\x0a\0\0ORTM"]
)
def test_renamed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ToolkitError, match="is not a model that ONNX Runtime can open"):
        open_model(path, provider="cpu")


@pytest.mark.hostile
def test_missing_folder_empty_and_device(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, said in (("none", "No such file"), (".", "is a folder"), ("empty", "is empty")):
        with pytest.raises(ToolkitError, match=said):
            open_model(tmp_path / path)
    if sys.platform != "win32":
        with pytest.raises(ToolkitError, match="is a device"):
            open_model("/dev/zero")


@pytest.mark.hostile
def test_a_sparse_file_of_2_gb_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(ToolkitError, match=f"2,147,483,648 bytes; at most {MAX_MODEL_BYTES:,}"):
        open_model(tmp_path / "model.onnx")


@pytest.mark.hostile
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd"])
def test_external_data_is_refused(tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(120))
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    external(model.graph.initializer[1], location)
    with pytest.raises(ToolkitError, match="contains weights outside the file"):
        open_model(saved(tmp_path, model), provider="cpu")


@pytest.mark.hostile
def test_external_data_is_rejected_in_subgraphs_functions_and_sparse_tensors(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "t")
    external(tensor, "x")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [3])])
    in_branch, in_function = tiny_model(), tiny_model()
    in_branch.graph.node.append(helper.make_node("If", ["a"], ["b"], then_branch=inner, else_branch=inner))
    in_function.functions.append(helper.make_function("own", "f", [], ["c"], [constant], [helper.make_opsetid("", 18)]))
    sparse = tiny_model()
    sparse.graph.sparse_initializer.add().values.CopyFrom(tensor)
    for model in (in_branch, in_function, sparse):
        with pytest.raises(ToolkitError, match="contains (a subgraph|weights|a function|a sparse tensor)"):
            read_model(saved(tmp_path, model))


@pytest.mark.hostile
@pytest.mark.parametrize("operator", ["ReduceMin", "Resize", "Slice"])
def test_operators_of_the_picture_rule_stand_once(tmp_path: Path, operator: str) -> None:
    model = picture_model()
    model.graph.node.append(next(node for node in model.graph.node if node.op_type == operator))
    with pytest.raises(ToolkitError, match="gives the name picture_[a-z]+ to two values"):
        read_model(saved(tmp_path, model))


def test_the_word_location_alone_is_no_external_data(tmp_path: Path) -> None:
    model = tiny_model()
    model.producer_name = "location"
    open_model(saved(tmp_path, model), provider="cpu")


_CONTENT = tiny_model().SerializeToString()


@pytest.mark.hostile
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, len(_CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, len(_CONTENT)),
)
def test_mutated_models_open_or_give_a_toolkit_error(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(_CONTENT)
    for position, value in changes:
        content[position] = value
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: cut or None])
    message = ""
    try:
        open_model(path, provider="cpu", threads=1).logits_and_probabilities(PICTURES[:1])
    except ToolkitError as error:
        message = str(error)
    assert message.isprintable()


# Which model is meant.


def test_the_order_in_which_a_model_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped.onnx"
    monkeypatch.setattr("toolkit.inference.model_file.SHIPPED_MODEL", shipped)
    monkeypatch.delenv("CIFAR_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolkitError, match=r"no model: .*cifar export model.onnx.*--model"):
        find_model()
    shipped.touch()
    assert find_model() == shipped
    (tmp_path / "model.onnx").touch()
    assert find_model() == Path("model.onnx")
    monkeypatch.setenv("CIFAR_MODEL", "env.onnx")
    assert find_model() == Path("env.onnx")
    assert find_model("option.onnx") == Path("option.onnx")


def test_no_torch_and_nothing_of_training_is_imported() -> None:
    code = (
        "import sys, toolkit.inference\n"
        "unwanted = {'torch', 'onnx', 'toolkit.training', 'toolkit.deploy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(unwanted) if unwanted else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
