"""The figures of a checkpoint or an ONNX file on the whole test set."""

import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from toolkit.deploy import graph
from toolkit.deploy.metadata import claims_of
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference.session import Session, open_model
from toolkit.names import display
from toolkit.regular_file import open_regular
from toolkit.training.checkpoint import load_checkpoint
from toolkit.training.data import DataSource, Images, data_identity, require_same_data
from toolkit.training.device import choose_device
from toolkit.training.metrics import Metrics, compute_logits, measure

ONNX_BATCH = 500  # images at a time


def evaluate(path: Path, *, source: DataSource, provider: str = "auto", device: str = "auto") -> Metrics:
    """Measure a model on the test set of `source`.

    Args:
        path: a checkpoint or an ONNX file, told apart by their contents.
        source: the data that the model was trained on; other data are refused.
        provider: for an ONNX file alone, where ONNX Runtime runs it.
        device: for a checkpoint alone, the torch device; the network is computed in float32.

    Raises:
        ToolkitError: no such file, not a model, or a model of other data or with other names for its outputs.
        UsageError: no such provider or device, or one for the other kind of file.
    """
    if _is_checkpoint(path):
        if provider != "auto":
            raise UsageError(f"{display(path)} is a checkpoint, which PyTorch runs: choose a device, not a provider")
        checkpoint = load_checkpoint(path)
        require_same_data(checkpoint.data, data_identity(source.name, source.train()), what=str(path))
        network = checkpoint.network().to(choose_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        test = source.test()
        return measure(compute_logits(network, test.images), test.labels, checkpoint.class_names)
    if device != "auto":
        raise UsageError(f"{display(path)} is an ONNX file, which ONNX Runtime runs: choose a provider, not a device")
    session = open_model(path, provider=provider)
    require_same_data(_identity(session.metadata), data_identity(source.name, source.train()), what=str(path))
    if session.class_names != source.class_names:
        raise ToolkitError(
            f"{display(path)}: names its outputs {', '.join(session.class_names)}, but the labels of {source.name} are "
            f"{', '.join(source.class_names)}, in this order"
        )
    test = source.test()
    return measure(_onnx_logits(session, test), test.labels, session.class_names)


def claimed_data(path: Path) -> dict[str, str]:
    """The identity of the training data that a checkpoint or an ONNX file carries: "name" and "train_sha256".

    An empty one, which no data have, where an ONNX file carries none or is no model of this toolkit. Nothing of an ONNX
    file is run for that: the gate has not looked at it yet.

    Raises:
        ToolkitError: the file cannot be read.
    """
    if _is_checkpoint(path):
        return load_checkpoint(path).data
    content = graph.read_model(path)
    model = graph.parse(content) if len(content) <= graph.MAX_BYTES else None
    return {} if model is None else _identity(claims_of(model))


def _is_checkpoint(path: Path) -> bool:
    """Whether the file is a zip archive, as torch writes checkpoints."""
    with open_regular(path, max_bytes=sys.maxsize) as file:  # its end alone is read
        return zipfile.is_zipfile(file)


def _identity(claims: Mapping[str, str]) -> dict[str, str]:
    try:
        claimed = json.loads(claims.get("data", "{}"))
    except (ValueError, RecursionError):
        return {}
    is_one = isinstance(claimed, dict) and all(isinstance(value, str) for value in claimed.values())
    return claimed if is_one else {}


def _onnx_logits(session: Session, test: Images) -> torch.Tensor:
    batches = test.images.permute(0, 2, 3, 1).contiguous().split(ONNX_BATCH)  # (B, 32, 32, 3) each
    return torch.cat([torch.from_numpy(session.logits_and_probabilities(batch.numpy())[0]) for batch in batches])
