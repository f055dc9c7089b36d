"""The figures of a checkpoint, an ONNX file or several seeds on the whole test set."""

import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.data.dataset import DataSource, data_identity, require_same_data
from toolkit.data.images import Images
from toolkit.device import choose_device
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.metrics import Metrics, compute_logits, measure
from toolkit.files import as_text, display, open_regular
from toolkit.inference.session import Session, open_model
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.seeds import SeedRuns, spread

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
    if is_checkpoint(path):
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
    require_same_data(identity_in(session.metadata), data_identity(source.name, source.train()), what=str(path))
    if session.class_names != source.class_names:
        raise ToolkitError(
            f"{display(path)}: names its outputs {', '.join(session.class_names)}, but the labels of {source.name} are "
            f"{', '.join(source.class_names)}, in this order"
        )
    test = source.test()
    return measure(_onnx_logits(session, test), test.labels, session.class_names)


def is_checkpoint(path: Path) -> bool:
    """Whether the file is a zip archive, as torch writes checkpoints."""
    with open_regular(path, max_bytes=sys.maxsize) as file:  # its end alone is read
        return zipfile.is_zipfile(file)


def identity_in(claims: Mapping[str, str]) -> dict[str, str]:
    try:
        claimed = json.loads(claims.get("data", "{}"))
    except (ValueError, RecursionError):
        return {}
    is_one = isinstance(claimed, dict) and all(isinstance(value, str) for value in claimed.values())
    return claimed if is_one else {}


def _onnx_logits(session: Session, test: Images) -> torch.Tensor:
    batches = test.images.permute(0, 2, 3, 1).contiguous().split(ONNX_BATCH)  # (B, 32, 32, 3) each
    return torch.cat([torch.from_numpy(session.logits_and_probabilities(batch.numpy())[0]) for batch in batches])


@dataclass(frozen=True)
class SeedsMetrics:
    """Figures of every seed of one recipe on the test set.

    Attributes:
        together: the runs.
        epochs: of each seed, the epoch whose weights were measured.
        metrics: of each seed.
    """

    together: SeedRuns
    epochs: tuple[int, ...]
    metrics: tuple[Metrics, ...]

    def as_dict(self) -> dict[str, Any]:
        """Mean, sample standard deviation, minimum and n of the figures; then each seed's, without its matrix."""
        rows: list[dict[str, Any]] = [
            {"seed": seed, "file": as_text(run.best), "epoch": epoch} | metrics.as_dict()
            for seed, (run, epoch, metrics) in enumerate(
                zip(self.together.runs, self.epochs, self.metrics, strict=True)
            )
        ]
        figures = {
            name: asdict(spread(row[name] for row in rows)) for name in ("accuracy", "loss", "calibration_error")
        }
        for row in rows:
            del row["confusion"]
        return {"folder": as_text(self.together.path), "n": self.together.n, "figures": figures, "seeds": rows}


def evaluate_seeds(together: SeedRuns, *, source: DataSource, device: str = "auto") -> SeedsMetrics:
    """Measure the best checkpoint of every seed, as `evaluate` does: that of the last epoch where none are held out.

    Raises:
        ToolkitError: a seed is not finished, or is one of another recipe or of other data.
        UsageError: no such device.
    """
    together.require_finished()
    return SeedsMetrics(
        together=together,
        epochs=tuple(load_checkpoint(run.best).epoch for run in together.runs),
        metrics=tuple(evaluate(run.best, source=source, device=device) for run in together.runs),
    )
