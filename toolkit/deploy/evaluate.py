"""The figures of a checkpoint or an ONNX file on the whole test set."""

import json
import zipfile
from pathlib import Path

import torch

from toolkit.errors import ToolkitError
from toolkit.inference.session import Session, open_model
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
        provider: for an ONNX file, where ONNX Runtime runs it.
        device: for a checkpoint, the torch device; the network is computed in float32.

    Raises:
        ToolkitError: no such file, not a model, or a model of other data.
        UsageError: no such provider or device.
    """
    present = data_identity(source.name, source.train())
    if zipfile.is_zipfile(path):  # as torch writes checkpoints
        checkpoint = load_checkpoint(path)
        require_same_data(checkpoint.data, present, what=str(path))
        network = checkpoint.network().to(choose_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        test = source.test()
        return measure(compute_logits(network, test.images), test.labels, checkpoint.class_names)
    session = open_model(path, provider=provider)
    require_same_data(_claimed_data(session), present, what=str(path))
    test = source.test()
    return measure(_onnx_logits(session, test), test.labels, session.class_names)


def claimed_data(path: Path) -> dict[str, str]:
    """The identity of the training data that a checkpoint or an ONNX file carries: "name" and "train_sha256".

    An empty one, which no data have, where an ONNX file carries none or is no model of this toolkit.

    Raises:
        ToolkitError: a checkpoint that cannot be read.
    """
    if zipfile.is_zipfile(path):
        return load_checkpoint(path).data
    try:
        return _claimed_data(open_model(path, provider="cpu"))
    except ToolkitError:  # whoever goes on to open it says what is wrong
        return {}


def _claimed_data(session: Session) -> dict[str, str]:
    try:
        claimed = json.loads(session.metadata.get("data", "{}"))
    except ValueError:
        return {}
    return claimed if isinstance(claimed, dict) else {}


def _onnx_logits(session: Session, test: Images) -> torch.Tensor:
    batches = test.images.permute(0, 2, 3, 1).contiguous().split(ONNX_BATCH)  # (B, 32, 32, 3) each
    return torch.cat([torch.from_numpy(session.logits_and_probabilities(batch.numpy())[0]) for batch in batches])
