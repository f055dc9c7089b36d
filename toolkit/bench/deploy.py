"""`cifar bench deploy`: a network in PyTorch and its exported files in ONNX Runtime, compared on this machine.

Each side has a process of its own with its default settings. Accuracy is measured before the timings, on the whole
test set.
"""

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import torch

from toolkit.bench.harness import measure
from toolkit.bench.result import BenchmarkResult, Result, Side
from toolkit.cores import available_cores
from toolkit.data.dataset import DataSource, find_data
from toolkit.device import choose_device, device_name
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.evaluate import evaluate, load_model
from toolkit.files import escape
from toolkit.inference.model_file import SHIPPED_MODEL, read_model
from toolkit.inference.session import Session, open_model, probe
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import SHIPPED_CHECKPOINT

BATCH_SIZES = (1, 8, 64, 512)
MAX_BATCH = 4096  # about 1 GiB of activations
ROUNDS, SECONDS = 5, 1.0
QUICK_ROUNDS, QUICK_SECONDS = 1, 0.1


def bench_deploy(
    models: Sequence[Path] = (),
    *,
    checkpoint: Path | None = None,
    data: str | None = None,
    skip_damaged: bool = False,
    batch_sizes: Iterable[int] = BATCH_SIZES,
    quick: bool = False,
    progress: Note = ignore,
) -> BenchmarkResult:
    """Time a network in PyTorch and in ONNX Runtime, on every device and provider of this machine.

    `start_seconds` of a side is the time to open the model in a process that has imported its libraries (compilation
    happens at the first call and is untimed); `memory` is what the process took from then on; `figures` are
    `file_bytes` and `accuracy`. Ratios refer to the first ONNX file on the CPU.

    Args:
        models: ONNX files; by default the shipped one.
        checkpoint: for PyTorch; by default the shipped one, and no such side if that is missing.
        data: as for `find_data`, but nothing is downloaded: without data, accuracy is not measured.
        skip_damaged: continue without pictures that cannot be read.
        batch_sizes: images per call, in the order in which they are measured.
        quick: one short round, no compiled network, no accuracy.
        progress: called with a description of the next measurement.

    Raises:
        UsageError: a batch size outside 1 to `MAX_BATCH`.
        ToolkitError: one of the files cannot be opened.
    """
    start, batch_sizes = time.monotonic(), tuple(batch_sizes)
    if wrong := [size for size in batch_sizes if not 1 <= size <= MAX_BATCH]:
        raise UsageError(f"a batch has 1 to {MAX_BATCH} images, not {wrong[0]}")
    sides, notes = list_sides(models or [SHIPPED_MODEL], checkpoint, quick=quick)
    accuracies: dict[str, float] = {}
    if not quick:
        accuracies, more_notes = measure_accuracies(sides, data, progress, skip_damaged=skip_damaged)
        notes += more_notes
    with tempfile.TemporaryDirectory(prefix="cifar-bench-", ignore_cleanup_errors=True) as cache:
        results = measure(
            sides,
            batch_sizes,
            rounds=QUICK_ROUNDS if quick else ROUNDS,
            seconds=QUICK_SECONDS if quick else SECONDS,
            environment={"TORCHINDUCTOR_CACHE_DIR": cache},  # an empty cache: each run compiles
            progress=progress,
        )
    return BenchmarkResult(
        benchmark="deploy",
        device=device_name(choose_device("auto")),
        cores=available_cores(),
        libraries={"torch": version("torch"), "onnxruntime": onnxruntime.__version__},
        settings={"quick": quick},
        seconds=time.monotonic() - start,
        results=tuple(_add_file_figures(result, accuracies) for result in results),
        notes=tuple(notes),
    )


def _add_file_figures(result: Result, accuracies: dict[str, float]) -> Result:
    file = result.side.options["file"]
    figures: dict[str, float] = {"file_bytes": Path(file).stat().st_size}
    if file in accuracies:
        figures["accuracy"] = accuracies[file]
    return replace(result, figures=figures)


def list_sides(models: Sequence[Path], checkpoint: Path | None, *, quick: bool = False) -> tuple[list[Side], list[str]]:
    """List the sides that this machine can run, and the reasons why others cannot run.

    Raises:
        ToolkitError: a file cannot be opened.
    """
    sessions = {path: open_model(path, provider="cpu") for path in models}
    sides: list[Side] = []
    providers, notes = _find_providers(models[0])
    alike = len({path.name for path in models}) < len(models)
    names = {path: escape(path if alike else path.name) for path in models}
    for provider in ("cpu", *providers):
        sides += [_side("onnx", path, provider, name=names[path]) for path in models]
        if provider == "cpu":
            sides += [
                _side("bare", path, provider, name=names[path]) for path in models if _can_run_bare(sessions[path])
            ]
    if checkpoint is None and SHIPPED_CHECKPOINT.is_file():
        checkpoint = SHIPPED_CHECKPOINT
    if checkpoint is None:
        return sides, [*notes, "PyTorch: not measured, no --checkpoint was given and none is shipped"]
    if not checkpoint.is_file():
        raise ToolkitError(f"no checkpoint at {checkpoint}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    kinds = ["eager"] if quick else ["eager", "compiled"]
    return sides + [
        _side(kind, checkpoint, device, name=f"PyTorch {kind}") for device in devices for kind in kinds
    ], notes


def _side(kind: str, file: Path, device: str, *, name: str) -> Side:
    """Build a side; `device` is the torch device or the execution provider."""
    name = f"{name}, {device}" + (", bare session" if kind == "bare" else "")
    return Side(name, "toolkit.bench.deploy_worker", {"kind": kind, "file": str(file), "place": device})


def _can_run_bare(session: Session) -> bool:
    """Whether the file is compared with a bare session: float32, and fed with uint8 images as they are."""
    return session.metadata.get("precision", "fp32") == "fp32" and session.input_format == "uint8-nhwc"


def _find_providers(model: Path) -> tuple[list[str], list[str]]:
    """The GPU providers that run here, and a note on each that does not."""
    content, providers, notes = read_model(model), [], []
    for provider in ("cuda", "tensorrt"):
        try:
            probe(content, provider=provider)
            providers.append(provider)
        except ToolkitError as error:
            notes.append(f"{provider}: not measured, {error}")
    return providers, notes


def measure_accuracies(
    sides: Sequence[Side], data: str | None, progress: Note, *, skip_damaged: bool = False
) -> tuple[dict[str, float], list[str]]:
    """Accuracy in [0, 1] of each file on the whole test set, and a note on each that was not measured."""
    try:
        source = find_data(data, fetch=False, skip_damaged=skip_damaged)
    except ToolkitError as error:
        return {}, [f"accuracy: not measured, {error}"]
    accuracies: dict[str, float] = {}
    notes: list[str] = []
    for file, side in {side.options["file"]: side for side in sides}.items():
        progress(f"accuracy of {file}")
        try:
            accuracies[file] = _measure_accuracy(side, source)
        except ToolkitError as error:
            notes.append(f"accuracy: not measured, {error}")
    return accuracies, notes


def _measure_accuracy(side: Side, source: DataSource) -> float:
    place = {} if side.options["kind"] in ("eager", "compiled") else {"provider": "cpu"}
    return evaluate(load_model(Path(side.options["file"]), **place), source=source, device="cpu").accuracy
