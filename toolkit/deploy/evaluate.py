"""The figures of a checkpoint, an ONNX file or a folder of seeds on the whole test set."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import ToolkitError
from toolkit.inference.session import Session, open_model
from toolkit.training.checkpoint import load_checkpoint
from toolkit.training.data import DataSource, Images, data_identity, require_same_data
from toolkit.training.device import choose_device
from toolkit.training.metrics import Metrics, compute_logits, measure
from toolkit.training.seeds import SeedRuns, spread

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
            {"seed": seed, "file": str(run.best), "epoch": epoch} | metrics.as_dict()
            for seed, (run, epoch, metrics) in enumerate(
                zip(self.together.runs, self.epochs, self.metrics, strict=True)
            )
        ]
        figures = {
            name: asdict(spread(row[name] for row in rows)) for name in ("accuracy", "loss", "calibration_error")
        }
        for row in rows:
            del row["confusion"]
        return {"folder": str(self.together.path), "n": self.together.n, "figures": figures, "seeds": rows}


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
