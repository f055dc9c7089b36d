"""Evaluation of a checkpoint, an ONNX file or several seeds on the whole test set."""

import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from toolkit.data.dataset import DataSource, identify_data, require_same_data
from toolkit.data.images import Images
from toolkit.device import choose_device
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.metrics import Metrics, compute_logits, measure
from toolkit.files import as_text, escape, open_regular
from toolkit.inference.session import Session, open_model
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint
from toolkit.runs.seeds import SeedRuns, spread

ONNX_BATCH = 500  # images at a time

_SUMMARIZED = ("accuracy", "macro_accuracy", "top5_accuracy", "loss", "calibration_error")  # over several seeds


def load_model(path: Path, *, provider: str = "auto", device: str = "auto") -> Checkpoint | Session:
    """Load a checkpoint or open an ONNX file; detect the type from the contents.

    Args:
        path: the file.
        provider: of an ONNX file; must be "auto" for a checkpoint.
        device: of a checkpoint; must be "auto" for an ONNX file.

    Raises:
        ToolkitError: no such file, or not a model.
        UsageError: an unknown provider, or an option for the other kind of file.
    """
    if _is_checkpoint(path):
        if provider != "auto":
            raise UsageError(f"{escape(path)} is a checkpoint, which PyTorch runs: choose a device, not a provider")
        return load_checkpoint(path)
    if device != "auto":
        raise UsageError(f"{escape(path)} is an ONNX file, which ONNX Runtime runs: choose a provider, not a device")
    return open_model(path, provider=provider)


def read_data_identity(model: Checkpoint | Session) -> dict[str, str]:
    """Identity of the training data that a model records; empty if it records none."""
    return model.data if isinstance(model, Checkpoint) else parse_identity(model.metadata)


def evaluate(model: Path | Checkpoint | Session, *, source: DataSource, device: str = "auto") -> Metrics:
    """Measure a model on the test set of `source`.

    Args:
        model: from `load_model`, or a file for it.
        source: the data that the model was trained on; others are rejected.
        device: for a checkpoint, the torch device; the network is computed in float32.

    Raises:
        ToolkitError: not a model, trained on other data, or with other names for its outputs.
        UsageError: an unknown device, or one for an ONNX file.
    """
    if isinstance(model, Path):
        model = load_model(model, device=device)
    what = "the checkpoint" if isinstance(model, Checkpoint) else escape(model.path)
    require_same_data(read_data_identity(model), identify_data(source.name, source.train()), what=what)
    if isinstance(model, Checkpoint):
        network = model.network().to(choose_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        test = source.test()
        logits = compute_logits(network, test.images, statistics=model.statistics)
        return measure(logits, test.labels, model.class_names)
    if model.class_names != source.class_names:
        raise ToolkitError(
            f"{what} names its outputs {', '.join(model.class_names)}, but the labels of {source.name} are "
            f"{', '.join(source.class_names)}, in this order"
        )
    test = source.test()
    return measure(_onnx_logits(model, test), test.labels, model.class_names)


def _is_checkpoint(path: Path) -> bool:
    """Whether the file is a zip archive, as torch writes checkpoints."""
    with open_regular(path, max_bytes=sys.maxsize) as file:  # only its end is read
        return zipfile.is_zipfile(file)


def parse_identity(metadata: Mapping[str, str]) -> dict[str, str]:
    """The data identity in the metadata of an ONNX file; empty if it is missing or malformed."""
    try:
        identity = json.loads(metadata.get("data", "{}"))
    except (ValueError, RecursionError):
        return {}
    is_plain = isinstance(identity, dict) and all(isinstance(value, str) for value in identity.values())
    return identity if is_plain else {}


def _onnx_logits(session: Session, test: Images) -> torch.Tensor:
    batches = test.images.permute(0, 2, 3, 1).contiguous().split(ONNX_BATCH)  # (B, 32, 32, 3) each
    return torch.cat([torch.from_numpy(session.logits_and_probabilities(batch.numpy())[0]) for batch in batches])


@dataclass(frozen=True)
class SeedsMetrics:
    """Metrics of every seed of one recipe on the test set.

    Attributes:
        seed_runs: the runs.
        epochs: for each seed, the epoch of the measured weights.
        metrics: of each seed.
    """

    seed_runs: SeedRuns
    epochs: tuple[int, ...]
    metrics: tuple[Metrics, ...]

    def as_dict(self) -> dict[str, Any]:
        """Mean, standard deviation, minimum and n; then the metrics of each seed, without the confusion matrix."""
        rows: list[dict[str, Any]] = [
            {"seed": seed, "file": as_text(run.best), "epoch": epoch} | metrics.as_dict()
            for seed, (run, epoch, metrics) in enumerate(
                zip(self.seed_runs.runs, self.epochs, self.metrics, strict=True)
            )
        ]
        names = [name for name in _SUMMARIZED if rows[0][name] is not None]
        figures = {name: asdict(spread(row[name] for row in rows)) for name in names}
        for row in rows:
            del row["confusion"]
        return {"folder": as_text(self.seed_runs.path), "n": self.seed_runs.n, "figures": figures, "seeds": rows}


def evaluate_seeds(seed_runs: SeedRuns, *, source: DataSource, device: str = "auto") -> SeedsMetrics:
    """Measure the best checkpoint of every seed (of the last epoch without validation images).

    Raises:
        ToolkitError: a seed is unfinished, or has another recipe or other data.
        UsageError: an unknown device.
    """
    seed_runs.require_finished()
    checkpoints = [load_checkpoint(run.best) for run in seed_runs.runs]
    return SeedsMetrics(
        seed_runs=seed_runs,
        epochs=tuple(checkpoint.epoch for checkpoint in checkpoints),
        metrics=tuple(evaluate(checkpoint, source=source, device=device) for checkpoint in checkpoints),
    )
