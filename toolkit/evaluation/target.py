"""Evaluate what `cifar evaluate` names: a model file, a run, or the seeds of one recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.dataset import name_of_data
from toolkit.errors import UsageError
from toolkit.evaluation.evaluate import SeedsMetrics, evaluate, evaluate_seeds, load_model, read_data_identity
from toolkit.evaluation.metrics import Metrics
from toolkit.files import as_text, display, require_writable
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import RUNS, find_checkpoint
from toolkit.runs.location import find_training_data
from toolkit.runs.seeds import SeedRuns, find_seeds


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `cifar evaluate`.

    Attributes:
        target: a checkpoint, an ONNX file, a run or a folder of seeds; None for the newest finished run.
        data: as `find_data` takes it; None for the data that the model records.
        skip_damaged: continue without pictures that cannot be read.
        runs: the folder of runs.
        provider, device: as `load_model` takes them.
        plot: PNG file for the confusion matrix of one model.
    """

    target: str | None = None
    data: str | None = None
    skip_damaged: bool = False
    runs: Path = RUNS
    provider: str = "auto"
    device: str = "auto"
    plot: Path | None = None


@dataclass(frozen=True)
class FileMetrics:
    """Metrics of one model file on the test set."""

    path: Path
    metrics: Metrics

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"file": as_text(self.path)} | self.metrics.as_dict()


def evaluate_target(
    options: EvaluateOptions, *, note: Note = ignore, **data_callbacks: Any
) -> FileMetrics | SeedsMetrics:
    """Measure a model, or every seed of a recipe, on the test set.

    Args:
        options: see there.
        note: called with one line for each decision made for the user.
        data_callbacks: `progress` and `on_pictures` of `find_data`.

    Raises:
        UsageError: an option that the target does not allow.
        ToolkitError: as `find_checkpoint`, `find_training_data`, `evaluate` and `evaluate_seeds`.
    """
    if options.plot is not None:
        require_writable(options.plot, suffix=".png")
    seed_runs = find_seeds(options.target, root=options.runs) if options.target is not None else None
    if seed_runs is not None:
        return _evaluate_seeds(seed_runs, options, note, data_callbacks)
    return _evaluate_file(options, note, data_callbacks)


def _evaluate_seeds(
    seed_runs: SeedRuns, options: EvaluateOptions, note: Note, data_callbacks: dict[str, Any]
) -> SeedsMetrics:
    if options.plot is not None or options.provider != "auto":
        option = "--plot" if options.plot is not None else "--provider"
        raise UsageError(f"{option} takes one model: name one seed, such as {display(seed_runs.runs[0].path)}")
    first = seed_runs.runs[0].best
    source = find_training_data(
        options.data,
        recorded=load_checkpoint(first).data,
        model=first,
        skip_damaged=options.skip_damaged,
        note=note,
        **data_callbacks,
    )
    note(f"Evaluating the {seed_runs.n} seeds in {seed_runs.path} on the test set of {source.name}")
    return evaluate_seeds(seed_runs, source=source, device=options.device)


def _evaluate_file(options: EvaluateOptions, note: Note, data_callbacks: dict[str, Any]) -> FileMetrics:
    path = find_checkpoint(options.target, data=name_of_data(options.data), root=options.runs, note=note)
    model = load_model(path, provider=options.provider, device=options.device)
    source = find_training_data(
        options.data,
        recorded=read_data_identity(model),
        model=path,
        skip_damaged=options.skip_damaged,
        note=note,
        **data_callbacks,
    )
    note(f"Evaluating {path} on the test set of {source.name}")
    metrics = evaluate(model, source=source, device=options.device)
    if options.plot is not None:
        from toolkit.evaluation.plots import plot_confusion  # imports Matplotlib

        plot_confusion(metrics, options.plot, title=f"{path.name}: test set")
        note(f"Confusion matrix: {options.plot}")
    return FileMetrics(path, metrics)
