"""Checks of this machine: libraries, providers, data and the shipped model, each with the command that repairs it."""

import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from toolkit import __version__
from toolkit.errors import ToolkitError

# As in pyproject.toml: onnxruntime-gpu is published for x86-64 Linux and Windows, and replaces onnxruntime there.
_GPU_BUILDS = (("linux", "x86_64"), ("win32", "AMD64"))
ONNX_RUNTIME = "onnxruntime-gpu" if (sys.platform, platform.machine()) in _GPU_BUILDS else "onnxruntime"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the library, provider or file checked.
        found: its version or state.
        ok: whether it works; None if it does not and is optional.
        remedy: the command that repairs it; "" if nothing needs repair.
    """

    name: str
    found: str
    ok: bool | None = True
    remedy: str = ""


def examine(data: str | None = None) -> tuple[Finding, ...]:
    """Check everything, without downloading or writing anything.

    Args:
        data: as for `toolkit.data.dataset.find_data`.
    """
    python = Finding("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    return (
        Finding("cifar", __version__),
        python,
        *_check("torch", _torch, remedy="pip install torch torchvision"),
        *_check("ONNX Runtime", _onnx_runtime, remedy=f"pip install {ONNX_RUNTIME}"),
        *_check("data", lambda: _data(data), remedy="repair the libraries first"),
        *_check("shipped model", _shipped_model, remedy="repair the libraries first"),
    )


def _check(name: str, check: Callable[[], list[Finding]], *, remedy: str) -> list[Finding]:
    """Return the findings of `check`, or a failed one if a library is missing or broken."""
    try:
        return check()
    except (ImportError, OSError) as error:
        return [Finding(name, str(error), False, remedy)]


def _torch() -> list[Finding]:
    import torch

    built_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
    found = [Finding("torch", f"{torch.__version__}, {built_for}")]
    for name in ("torchvision", "onnx", "onnxscript"):
        found.append(_package(name))
    if torch.cuda.is_available():
        devices = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return [*found, Finding("CUDA", f"{devices}; cuDNN {torch.backends.cudnn.version()}")]
    if torch.backends.mps.is_available():
        return [*found, Finding("MPS", "training runs on Apple's GPU")]
    remedy = "" if not torch.version.cuda else "with an NVIDIA GPU here: install or update its driver (`nvidia-smi`)"
    found.append(Finding("CUDA", "torch sees no GPU: training runs on the CPU", None, remedy))
    return found


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", False, f"pip install {name}")


def _onnx_runtime() -> list[Finding]:
    import onnxruntime

    cuda = getattr(onnxruntime, "cuda_version", "")
    built_for = f"built for CUDA {cuda}" if cuda else "built for the CPU"
    found = [Finding("ONNX Runtime", f"{onnxruntime.__version__}, {built_for}")]
    for name in ("cpu", "cuda", "tensorrt"):
        found += _check(f"provider {name}", lambda name=name: [_provider(name)], remedy="pip install onnx")  # type: ignore[misc]
    return found


def _provider(name: str) -> Finding:
    """Open a session on a one-layer model: a provider can be listed and still fail to load."""
    from toolkit.inference.session import probe

    try:
        probe(_one_layer_model(), provider=name)
    except ToolkitError as error:
        return Finding(f"provider {name}", str(error), False if name == "cpu" else None, _PROVIDER_REMEDIES[name])
    return Finding(f"provider {name}", "opens a session")


_PROVIDER_REMEDIES = {
    "cpu": f"pip install --force-reinstall {ONNX_RUNTIME}",
    "cuda": 'with an NVIDIA GPU here: pip install "onnxruntime-gpu[cuda,cudnn]"',
    "tensorrt": "with an NVIDIA GPU here: pip install tensorrt, for the CUDA version that ONNX Runtime was built for",
}


def _one_layer_model() -> bytes:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy")
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)
    layer = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([layer], "one_layer", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def _data(data: str | None) -> list[Finding]:
    from toolkit.data.dataset import check_data

    status = check_data(data)
    if status.train_count is None:
        return [Finding("data", f"{status.name} in {status.folder} ({status.chosen_by}); `cifar data` reads them")]
    if status.complete:
        images = f"{status.train_count:,} training and {status.test_count:,} test images"
        return [Finding("data", f"{status.name}: {images}, in {status.folder or 'memory'} ({status.chosen_by})")]
    faulty = [name for name, state in status.files.items() if state != "ok"]
    which = "no usable files" if len(faulty) == len(status.files) else f"missing or damaged: {', '.join(faulty)}"
    found = f"{status.name} in {status.folder} ({status.chosen_by}): {which}"
    return [Finding("data", found, None, "cifar data --fetch" + (f" --data {shlex.quote(data)}" if data else ""))]


def _shipped_model() -> list[Finding]:
    from toolkit.inference.model_file import SHIPPED_MODEL
    from toolkit.inference.session import open_model

    try:
        session = open_model(SHIPPED_MODEL, provider="cpu")
    except ToolkitError as error:
        return [Finding("shipped model", str(error), False, "install the toolkit again, or cifar export")]
    facts = ", ".join(f"{key} {session.metadata.get(key, 'unknown')}" for key in ("model", "test_accuracy"))
    return [Finding("shipped model", f"{SHIPPED_MODEL.name}: {facts}")]
