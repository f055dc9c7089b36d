"""Evaluate the target of `cifar evaluate`: a model file, a run, or the seeds of one recipe."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.dataset import DataSource, find_data_name
from toolkit.errors import UsageError
from toolkit.evaluation.evaluate import SeedsMetrics, evaluate, evaluate_seeds, load_model, read_data_identity
from toolkit.evaluation.metrics import Metrics
from toolkit.files import as_text, escape, require_writable
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import RUNS, find_checkpoint
from toolkit.runs.location import find_training_data
from toolkit.runs.seeds import find_seeds


@dataclass(frozen=True)
class FileMetrics:
    """Metrics of one model file on the test set."""

    path: Path
    metrics: Metrics

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"file": as_text(self.path)} | self.metrics.as_dict()

    def plot(self, path: Path) -> None:
        """Draw the confusion matrix as a PNG file. Raises `ToolkitError` if it cannot be written."""
        from toolkit.evaluation.plots import plot_confusion  # imports Matplotlib

        plot_confusion(self.metrics, path, title=f"{self.path.name}: test set")


def evaluate_target(
    target: str | None = None,
    *,
    data: str | None = None,
    skip_damaged: bool = False,
    runs: Path = RUNS,
    provider: str = "auto",
    device: str = "auto",
    plot: Path | None = None,
    note: Note = ignore,
    **data_callbacks: Any,
) -> FileMetrics | SeedsMetrics:
    """Measure a model, or every seed of a recipe, on the test set.

    Args:
        target: a checkpoint, an ONNX file, a run or a folder of seeds; None for the newest finished run.
        data, skip_damaged, data_callbacks: as `find_training_data` takes them.
        runs: the folder of runs.
        provider, device: as `load_model` takes them.
        plot: PNG file that the caller will draw with `FileMetrics.plot`; checked before any work.
        note: called with one line for each decision made for the user.

    Raises:
        UsageError: an option that the target does not allow.
        ToolkitError: as `find_checkpoint`, `find_training_data`, `evaluate` and `evaluate_seeds`.
    """
    if plot is not None:
        require_writable(plot, suffix=".png")
    find: Callable[..., DataSource] = functools.partial(
        find_training_data, data=data, skip_damaged=skip_damaged, note=note, **data_callbacks
    )
    seed_runs = find_seeds(target, root=runs) if target is not None else None
    if seed_runs is not None:
        if plot is not None or provider != "auto":
            option = "--plot" if plot is not None else "--provider"
            raise UsageError(f"{option} takes one model: name one seed, such as {escape(seed_runs.runs[0].path)}")
        first = seed_runs.runs[0].best
        source = find(load_checkpoint(first).data, model=first)
        note(f"Evaluating the {seed_runs.n} seeds in {seed_runs.path} on the test set of {source.name}")
        return evaluate_seeds(seed_runs, source=source, device=device)
    path = find_checkpoint(target, data=find_data_name(data), root=runs, note=note)
    model = load_model(path, provider=provider, device=device)
    source = find(read_data_identity(model), model=path)
    note(f"Evaluating {path} on the test set of {source.name}")
    return FileMetrics(path, evaluate(model, source=source, device=device))
