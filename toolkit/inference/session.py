"""Open an ONNX model, and check the interface and the execution provider that were really loaded."""

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
from toolkit.errors import ToolkitError, UsageError, first_line
from toolkit.files import escape
from toolkit.inference.memory import limit_memory
from toolkit.inference.model_file import read_model
from toolkit.inference.model_graph import METADATA_PREFIX

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")

_Provider = tuple[str, dict[str, str]]  # name, options
_CPU: _Provider = ("CPUExecutionProvider", {})
_CUDA: _Provider = ("CUDAExecutionProvider", {"use_tf32": "0"})  # TF32 has a 10-bit mantissa; float32 has 23 bits
_TENSORRT: _Provider = ("TensorrtExecutionProvider", {})
_GPU_CHAINS = {"cuda": [_CUDA, _CPU], "tensorrt": [_TENSORRT, _CUDA, _CPU]}  # in order of preference, for each operator
_REMEDY = "`cifar doctor` shows which of its libraries is missing; --provider cpu runs without them"

# How long an idle thread spins before it sleeps. Measured with resnet20 on two cores, one of them shared with another
# program: with the default (1 ms) a batch of 64 takes 50% longer, without spinning a batch of 1 takes a third longer.
# 50 microseconds cover the gap between two layers. In releases of ONNX Runtime without this option, spinning is off.
_SPIN_MICROSECONDS = "50"
_SPIN_CAN_BE_SHORT = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 31)

_SILENT, _WARNING = 4, 2  # ONNX Runtime's log levels; the second is its default

_Shape = list[int | None]  # None: a dimension that is not fixed

# Input formats: the input's name, type and shape, and the number of rows of the outputs.
_INPUT_FORMATS: dict[str, tuple[str, str, _Shape, int | None]] = {
    "uint8-nhwc": ("images", "tensor(uint8)", [None, 32, 32, 3], None),
    "float-nchw": ("images", "tensor(float)", [None, 3, 32, 32], None),
    "picture": ("picture", "tensor(uint8)", [None, None, 3], 1),
}
_EXPECTED = (
    "input images, uint8 (batch, 32, 32, 3) or float32 (batch, 3, 32, 32), or picture, uint8 (height, width, 3); "
    "outputs logits and probabilities, float32 (batch, K) for K classes, of a picture (1, K)"
)
_MIN_CLASSES, _MAX_CLASSES = 2, 1000


@dataclass(frozen=True)
class Session:
    """An open model. Any number of threads may use it at once.

    Attributes:
        path: the file.
        provider: the effective provider: "cpu", "cuda" or "tensorrt".
        note: under `auto`, why an NVIDIA GPU of this machine is not used; else None.
        threads: processor threads per call.
        input_format: "uint8-nhwc", "float-nchw" or "picture", the input of the file.
        class_names: one for each of the K classes, in the order of the outputs.
        metadata: the properties under `cifar.`, without that prefix; only `cifar verify` checks them.
    """

    path: Path
    provider: str
    note: str | None
    threads: int
    input_format: str
    class_names: tuple[str, ...]
    metadata: Mapping[str, str]
    _onnx: onnxruntime.InferenceSession = field(repr=False)

    @property
    def takes_pictures(self) -> bool:
        """Whether the model takes one picture of any size and resizes it itself."""
        return self.input_format == "picture"

    def logits_and_probabilities(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the model on uint8 RGB images (N, 32, 32, 3); return both outputs, float32 (N, K) each.

        With `takes_pictures`, images of any size: (N, height, width, 3). The model then runs once for each.

        Raises:
            UsageError: the images have another type or shape.
            ToolkitError: the model failed, or returned another shape.
        """
        if not self.takes_pictures:
            if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
                raise UsageError(f"images must be uint8 (N, 32, 32, 3), not {images.dtype} {images.shape}")
            return self._run("images", to_input(images, self.input_format), rows=len(images))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
            raise UsageError(f"images must be uint8 (N, height, width, 3), not {images.dtype} {images.shape}")
        logits, probabilities = (np.empty((len(images), len(self.class_names)), np.float32) for _ in range(2))
        for index, image in enumerate(images):
            logits[index : index + 1], probabilities[index : index + 1] = self._run("picture", image, rows=1)
        return logits, probabilities

    def _run(self, name: str, value: NDArray[Any], *, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            outputs = self._onnx.run(["logits", "probabilities"], {name: value})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ToolkitError(f"{escape(self.path)}: the model failed: {first_line(error)}") from error
        for output in outputs:
            if output.shape != (rows, len(self.class_names)):
                raise ToolkitError(f"{escape(self.path)}: returned {output.shape} for {rows} images")
        return cast("tuple[NDArray[np.float32], NDArray[np.float32]]", tuple(outputs))


def to_input(images: NDArray[np.uint8], input_format: str) -> NDArray[Any]:
    """Convert uint8 RGB images (N, 32, 32, 3) to a model's input: unchanged, or float32 (N, 3, 32, 32) in [0, 1]."""
    if input_format == "uint8-nhwc":
        return images
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def open_model(path: str | os.PathLike[str], *, provider: str = "auto", threads: int | None = None) -> Session:
    """Open the ONNX file at `path`.

    Args:
        path: a file as `cifar export` writes it.
        provider: one of `PROVIDERS`. "auto" uses CUDA if it can be opened, else the CPU; the others do not fall back.
        threads: processor threads for one call; by default the cores that this process may use.

    Raises:
        UsageError: an unknown provider, or fewer than one thread.
        ToolkitError: the file is not a model of this toolkit, or the provider is not available.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    content, threads = read_model(path), threads or available_cores()
    options = _session_options(threads)
    note = None
    if provider == "auto":
        onnx, provider, note = _open_best(content, options, escape(path))
    else:
        onnx = _open_on(provider, content, options, escape(path))
    try:
        input_format, classes = _check_interface(onnx, escape(path))
        metadata = _metadata(onnx)
    except UnicodeDecodeError as error:
        raise ToolkitError(f"{escape(path)} is damaged: a name or property is not valid UTF-8 ({error})") from error
    class_names = _class_names(metadata, classes, escape(path))
    return Session(Path(path), provider, note, threads, input_format, class_names, metadata, onnx)


def probe(content: bytes, *, provider: str) -> None:
    """Test whether a provider works: open a model, which may have any interface, on the provider.

    Args:
        content: the bytes of an ONNX file.
        provider: "cpu", "cuda" or "tensorrt".

    Raises:
        ToolkitError: the provider does not work; the message gives the reason.
    """
    _open_on(provider, content, _session_options(1), "the probe")


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT  # errors are raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if _SPIN_CAN_BE_SHORT else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never ONNX Runtime's own format
    return options


def _open_best(
    content: bytes, options: onnxruntime.SessionOptions, name: str
) -> tuple[onnxruntime.InferenceSession, str, str | None]:
    """Open on CUDA if possible, else on the CPU; return session, provider, and the reason if CUDA failed."""
    note = None
    if _offered("cuda") and _nvidia_gpu():  # no GPU, nothing to explain
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
            f"{name} is not a model that ONNX Runtime can open ({first_line(error)}); a whole ONNX file as "
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
    with _captured_output() as said:
        try:
            onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed for torch
            session = _start(content, options, _GPU_CHAINS[provider])
        except Exception as error:  # as above
            raise ToolkitError(f"{provider} could not be opened ({first_line(error)}); {_REMEDY}") from error
    running = session.get_providers()[0]
    if running != _full_name(provider):
        found = escape(said.getvalue().strip())[:300] or f"ONNX Runtime fell back to {running}"
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
    """Whether the driver is installed and reports a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


@contextmanager
def _captured_output() -> Iterator[io.StringIO]:
    """Capture the output of ONNX Runtime while it loads GPU libraries; yield it for the error message."""
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        with redirect_stdout(io.StringIO()) as said:
            yield said
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _check_interface(session: onnxruntime.InferenceSession, name: str) -> tuple[str, int]:
    """Return the input format and the number of classes.

    Raises:
        ToolkitError: inputs or outputs differ from the contract.
    """
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    classes = outputs.get("logits", ("", [None]))[1][-1:]  # empty for a scalar
    count: Any = classes[0] if classes else None
    for input_format, (input_name, kind, shape, rows) in _INPUT_FORMATS.items():
        output = ("tensor(float)", [rows, count])
        required = {input_name: (kind, shape)}, {"logits": output, "probabilities": output}
        if (_remove_names(inputs), _remove_names(outputs)) == required and _is_class_count(count):
            return input_format, count
    found = f"inputs {_describe(inputs)}; outputs {_describe(outputs)}"
    raise ToolkitError(
        f"{name} does not have the interface of this toolkit's models. Found: {escape(found)[:500]}. "
        f"Expected: {_EXPECTED}. `cifar export` writes such files"
    )


def _is_class_count(count: object) -> bool:
    return isinstance(count, int) and _MIN_CLASSES <= count <= _MAX_CLASSES


def _remove_names(values: Mapping[str, tuple[str, list[Any]]]) -> dict[str, tuple[str, _Shape]]:
    """Replace the name of each dynamic dimension by None."""
    return {
        name: (kind, [dimension if isinstance(dimension, int) else None for dimension in shape])
        for name, (kind, shape) in values.items()
    }


def _describe(values: Mapping[str, tuple[str, list[Any]]]) -> str:
    return ", ".join(f"{name} {kind} ({', '.join(map(str, shape))})" for name, (kind, shape) in values.items())


def _metadata(session: onnxruntime.InferenceSession) -> dict[str, str]:
    properties = session.get_modelmeta().custom_metadata_map
    return {
        key.removeprefix(METADATA_PREFIX): value for key, value in properties.items() if key.startswith(METADATA_PREFIX)
    }


def _class_names(metadata: Mapping[str, str], classes: int, name: str) -> tuple[str, ...]:
    found = metadata.get("class_names", "")
    try:
        names = json.loads(found)
    except (ValueError, RecursionError):
        names = None
    if (
        isinstance(names, list)
        and len(names) == classes
        and all(isinstance(label, str) and label and label.isprintable() for label in names)
        and len(set(names)) == classes
    ):
        return tuple(names)
    raise ToolkitError(
        f"{name} does not name its {classes} outputs: its property {METADATA_PREFIX}class_names is "
        f"{escape(found)[:100] or 'missing'}, not a JSON list of {classes} different names; `cifar export` writes it"
    )
