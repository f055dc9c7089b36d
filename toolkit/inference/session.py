"""Opening an ONNX model: what was really loaded, file and execution provider, is checked against the request."""

import ctypes
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from toolkit.cores import available_cores
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import display
from toolkit.inference.memory import limit_memory
from toolkit.inference.model_file import read_model

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")
METADATA_PREFIX = "cifar."

_Provider = tuple[str, dict[str, str]]  # name, options
_CPU: _Provider = ("CPUExecutionProvider", {})
_CUDA: _Provider = ("CUDAExecutionProvider", {"use_tf32": "0"})  # TF32 keeps 10 bits of a factor's 23
_TENSORRT: _Provider = ("TensorrtExecutionProvider", {})
_GPU_CHAINS = {"cuda": [_CUDA, _CPU], "tensorrt": [_TENSORRT, _CUDA, _CPU]}  # what the first cannot run, the next does
_REMEDY = "`cifar doctor` shows which of its libraries is missing; --provider cpu runs without them"

# How long an idle thread spins before it sleeps. Measured with resnet20 on two cores, one of them shared with another
# program: the default (a millisecond) makes a batch of 64 take half as long again, no spinning at all makes batch 1
# take a third longer. This bridges the gap between two layers and no more. Releases of ONNX Runtime that do not know
# the option are told not to spin.
_SPIN_MICROSECONDS = "50"
_SPIN_CAN_BE_SHORT = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 31)

_SILENT, _WARNING = 4, 2  # ONNX Runtime's log levels; the second is its default

# The type of the input `images` -> the name of that form, and the shape of one image.
_INPUT_FORMS = {
    "tensor(uint8)": ("uint8-nhwc", [32, 32, 3]),
    "tensor(float)": ("float-nchw", [3, 32, 32]),
}
_EXPECTED = (
    "input images, uint8 (batch, 32, 32, 3) or float32 (batch, 3, 32, 32); outputs logits and probabilities, "
    "float32 (batch, 10)"
)


@dataclass(frozen=True)
class Session:
    """A model that is open and ready. Any number of threads may use it at once.

    Attributes:
        path: the file it came from.
        provider: what runs it: "cpu", "cuda" or "tensorrt".
        note: under `auto`, why the GPU of this machine could not be used; else None.
        threads: processor threads that one call uses.
        input_form: "uint8-nhwc" or "float-nchw", what the file itself takes.
        class_names: the ten classes, in the order of the outputs.
        metadata: the file's properties under `cifar.`, without that prefix: claims of the file, which only
            `cifar verify` checks.
    """

    path: Path
    provider: str
    note: str | None
    threads: int
    input_form: str
    class_names: tuple[str, ...]
    metadata: Mapping[str, str]
    _onnx: onnxruntime.InferenceSession = field(repr=False)

    def logits_and_probabilities(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both outputs, float32 `(N, 10)` each, for uint8 RGB images `(N, 32, 32, 3)`, whichever form the file takes.

        Raises:
            UsageError: the images have another type or shape.
            ToolkitError: the model failed, or gave something of another shape.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
            raise UsageError(f"images must be uint8 (N, 32, 32, 3), not {images.dtype} {images.shape}")
        try:
            outputs = self._onnx.run(["logits", "probabilities"], {"images": self._fed(images)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ToolkitError(f"{display(self.path)}: the model failed: {_said(error)}") from error
        for output in outputs:
            if output.shape != (len(images), 10):
                raise ToolkitError(f"{display(self.path)}: gave {output.shape} for {len(images)} images")
        return cast("tuple[NDArray[np.float32], NDArray[np.float32]]", tuple(outputs))

    def _fed(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        if self.input_form == "uint8-nhwc":
            return images
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def open_model(path: str | os.PathLike[str], *, provider: str = "auto", threads: int | None = None) -> Session:
    """Open the ONNX file at `path`.

    Args:
        path: a file as `cifar export` writes it.
        provider: one of `PROVIDERS`. What is asked for is what runs, or it is an error; "auto" takes CUDA where it
            really opens and the CPU elsewhere.
        threads: processor threads for one call; by default the cores that this process may use.

    Raises:
        UsageError: an unknown provider, or fewer than one thread.
        ToolkitError: the file is not a model of this toolkit, or the provider cannot be had here.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    content, threads = read_model(path), threads or available_cores()
    options = _session_options(threads)
    note = None
    if provider == "auto":
        onnx, provider, note = _open_best(content, options, display(path))
    else:
        onnx = _open_on(provider, content, options, display(path))
    try:
        input_form = _check_interface(onnx, display(path))
        metadata = _metadata(onnx)
    except UnicodeDecodeError as error:
        raise ToolkitError(f"{display(path)}: is damaged: a name or property in it is no text ({error})") from error
    class_names = _class_names(metadata, display(path))
    return Session(Path(path), provider, note, threads, input_form, class_names, metadata, onnx)


def probe(content: bytes, *, provider: str) -> None:
    """Open a model of any interface on just that provider, to see whether it can be had here.

    Args:
        content: the bytes of an ONNX file.
        provider: "cpu", "cuda" or "tensorrt".

    Raises:
        ToolkitError: it cannot, and why.
    """
    _open_on(provider, content, _session_options(1), "the probe")


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT  # what goes wrong is raised, and said once
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if _SPIN_CAN_BE_SHORT else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own format, whatever the bytes say
    return options


def _open_best(
    content: bytes, options: onnxruntime.SessionOptions, name: str
) -> tuple[onnxruntime.InferenceSession, str, str | None]:
    """The session, the provider that runs it and, where CUDA was on offer and could not be had, the reason."""
    note = None
    if _offered("cuda") and _nvidia_gpu():  # without a GPU, the CPU is the expected provider: no note
        try:
            return _open_on_gpu(content, options, "cuda"), "cuda", None
        except ToolkitError as error:
            note = f"running on the CPU: {error}"
    return _open_on_cpu(content, options, name), "cpu", note


def _open_on(
    provider: str, content: bytes, options: onnxruntime.SessionOptions, name: str
) -> onnxruntime.InferenceSession:
    return _open_on_cpu(content, options, name) if provider == "cpu" else _open_on_gpu(content, options, provider)


def _open_on_cpu(content: bytes, options: onnxruntime.SessionOptions, name: str) -> onnxruntime.InferenceSession:
    limit_memory(options)
    try:
        return _start(content, options, [_CPU])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ToolkitError(
            f"{name}: is not a model that ONNX Runtime can open ({_said(error)}); a whole ONNX file as "
            "`cifar export` writes it is needed"
        ) from error


def _open_on_gpu(content: bytes, options: onnxruntime.SessionOptions, provider: str) -> onnxruntime.InferenceSession:
    if not _offered(provider):
        raise ToolkitError(
            f"this ONNX Runtime ({onnxruntime.__version__}) was built without {provider}; install onnxruntime-gpu, "
            "or choose --provider cpu"
        )
    if not _nvidia_gpu():
        raise ToolkitError(f"no NVIDIA driver with a GPU was found, and {provider} needs one")
    with _quietly() as said:
        try:
            if hasattr(onnxruntime, "preload_dlls"):  # finds the CUDA libraries that pip installed for torch
                onnxruntime.preload_dlls()
            session = _start(content, options, _GPU_CHAINS[provider])
        except Exception as error:  # as above
            raise ToolkitError(f"{provider} could not be opened ({_said(error)}); {_REMEDY}") from error
    running = session.get_providers()[0]
    if running != _full_name(provider):
        found = display(said.getvalue().strip())[:300] or f"ONNX Runtime fell back to {running}"
        raise ToolkitError(f"{provider} could not be opened ({found}); {_REMEDY}")
    return session


def _start(content: bytes, options: onnxruntime.SessionOptions, chain: list[_Provider]) -> onnxruntime.InferenceSession:
    # enable_fallback=0: otherwise a failure is printed to stdout and the session quietly opens on something else.
    return onnxruntime.InferenceSession(content, options, providers=chain, enable_fallback=0, read_config_from_model=0)


def _offered(provider: str) -> bool:
    return _full_name(provider) in onnxruntime.get_available_providers()


def _full_name(provider: str) -> str:
    return _GPU_CHAINS[provider][0][0]


def _nvidia_gpu() -> bool:
    """Whether the driver is here and shows a GPU. Asking the driver itself costs nothing where there is none."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


@contextmanager
def _quietly() -> Iterator[io.StringIO]:
    """Keep what ONNX Runtime prints while it looks for a GPU's libraries, for the message."""
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        with redirect_stdout(io.StringIO()) as said:
            yield said
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _check_interface(session: onnxruntime.InferenceSession, name: str) -> str:
    """The form of the input; raises ToolkitError where the inputs or outputs are not those of the contract."""
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    kind, shape = inputs.get("images", ("", []))
    form, one_image = _INPUT_FORMS.get(kind, ("", [-1]))
    if (
        set(inputs) == {"images"}
        and _is_batch_of(one_image, shape)
        and set(outputs) == {"logits", "probabilities"}
        and all(kind == "tensor(float)" and _is_batch_of([10], shape) for kind, shape in outputs.values())
    ):
        return form
    found = f"inputs {_listed(inputs)}; outputs {_listed(outputs)}"
    raise ToolkitError(
        f"{name}: is not a model of this toolkit. Found: {display(found)[:500]}. Expected: {_EXPECTED}. "
        "`cifar export` writes such files"
    )


def _is_batch_of(one: list[int], shape: list[Any]) -> bool:
    return len(shape) == len(one) + 1 and not isinstance(shape[0], int) and shape[1:] == one


def _listed(values: Mapping[str, tuple[str, list[Any]]]) -> str:
    return ", ".join(f"{name} {kind} ({', '.join(map(str, shape))})" for name, (kind, shape) in values.items())


def _metadata(session: onnxruntime.InferenceSession) -> dict[str, str]:
    properties = session.get_modelmeta().custom_metadata_map
    return {
        key.removeprefix(METADATA_PREFIX): value for key, value in properties.items() if key.startswith(METADATA_PREFIX)
    }


def _class_names(metadata: Mapping[str, str], name: str) -> tuple[str, ...]:
    found = metadata.get("class_names", "")
    try:
        names = json.loads(found)
    except (ValueError, RecursionError):
        names = None
    if (
        isinstance(names, list)
        and len(names) == 10
        and all(isinstance(label, str) and label and label.isprintable() for label in names)
        and len(set(names)) == 10
    ):
        return tuple(names)
    raise ToolkitError(
        f"{name}: does not say what its ten outputs mean: its property {METADATA_PREFIX}class_names is "
        f"{display(found)[:100] or 'missing'}, not a JSON list of ten different names; `cifar export` writes it"
    )


def _said(error: Exception) -> str:
    return display(str(error).strip())[:300] or type(error).__name__
