"""Find and read the ONNX file, and reject contents that `cifar export` does not write."""

import os
import zipfile
from io import BytesIO
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import escape, open_regular
from toolkit.inference.model_cost import estimate_cost
from toolkit.inference.model_graph import Fault, read_graph
from toolkit.inference.protobuf import Damaged

MAX_MODEL_BYTES = 16 * 2**20  # six times the largest network of this toolkit in float32

SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "weights" / "model.onnx"


def find_model(option: str | os.PathLike[str] | None = None) -> Path:
    """Return `option`, else `$CIFAR_MODEL`, else `./model.onnx`, else the shipped model.

    A named file is returned whether or not it exists; opening it reports what is wrong.

    Raises:
        ToolkitError: no file was named, and there is neither `./model.onnx` nor a shipped model.
    """
    named = option or os.environ.get("CIFAR_MODEL")
    if named:
        return Path(named)
    for candidate in (Path("model.onnx"), SHIPPED_MODEL):
        if candidate.exists():
            return candidate
    raise ToolkitError(
        "no model: $CIFAR_MODEL is not set, there is no model.onnx in this folder, and this copy of the toolkit ships "
        "none; create one with `cifar export model.onnx`, or name one with --model"
    )


def read_model(path: str | os.PathLike[str]) -> bytes:
    """Read the ONNX file at `path` and check its contents before anything opens it as a model.

    Raises:
        ToolkitError: not a regular file, larger than `MAX_MODEL_BYTES`, or with contents that `find_fault` names.
    """
    content = read_model_bytes(path)
    if fault := find_fault(content):
        raise ToolkitError(f"{escape(path)} {fault}; `cifar export` writes suitable files")
    return content


def read_model_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read the file without looking at its contents.

    Raises:
        ToolkitError: not a regular file, larger than `MAX_MODEL_BYTES`, or a checkpoint.
    """
    with open_regular(path, max_bytes=MAX_MODEL_BYTES) as file:
        content = file.read(MAX_MODEL_BYTES)
    if content.startswith(b"PK") and zipfile.is_zipfile(BytesIO(content)):
        raise ToolkitError(
            f"{escape(path)} is a checkpoint, not an ONNX file; export it first, with `cifar export model.onnx "
            f"--checkpoint {escape(path)}`"
        )
    return content


def find_fault(content: bytes) -> str | None:
    """Return the reason for rejecting a file that `cifar export` does not write, or None.

    A rejected file must not reach ONNX Runtime or onnx.checker: both would read external data from any file, and a
    small file can make them use any amount of time and memory.
    """
    try:
        estimate_cost(read_graph(content))
    except Damaged as error:
        return f"is not a model that ONNX Runtime can open ({error})"
    except Fault as error:
        return str(error)
    return None
