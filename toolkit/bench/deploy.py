"""`cifar bench deploy`: a network in PyTorch and its exported files in ONNX Runtime, side by side, on this machine.

Each side lives in a process of its own, with the settings that it has by default, and is called in turn for a short
while, round after round; while one is timed, the others wait. Accuracy is measured before, on the whole test set.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from toolkit.bench.harness import Worker
from toolkit.cores import available_cores
from toolkit.data.dataset import DataSource, find_data
from toolkit.device import choose_device, device_name
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.evaluate import evaluate
from toolkit.inference.model_file import SHIPPED_MODEL, read_model
from toolkit.inference.session import Session, open_model, probe

BATCH_SIZES = (1, 8, 64, 512)
LARGEST_BATCH = 4096  # about 1 GiB of activations
ROUNDS, SECONDS_A_ROUND = 5, 1.0
QUICK_SECONDS = 0.1  # of the one round
SHIPPED_CHECKPOINT = SHIPPED_MODEL.with_name("checkpoint.pt")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """What one process runs.

    Attributes:
        kind: "eager" or "compiled" (PyTorch), "onnx" (the toolkit's session) or "bare" (ONNX Runtime's defaults).
        file: a checkpoint or an ONNX file.
        place: the torch device, or the execution provider.
    """

    kind: str
    file: str
    place: str

    @property
    def name(self) -> str:
        if self.kind in ("eager", "compiled"):
            return f"PyTorch {self.kind}, {self.place}"
        return f"{Path(self.file).name}, {self.place}" + (", bare session" if self.kind == "bare" else "")


@dataclass(frozen=True)
class Timing:
    """One side at one batch size.

    Attributes:
        p50_ms, p95_ms, p99_ms: of the time of a call, over all rounds.
        images_per_second: the median over the rounds.
        rounds: images a second in each round.
        calls: how many there were.
        ratio: of `images_per_second` to that of the first ONNX file on the CPU.
    """

    batch_size: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    rounds: tuple[float, ...]
    calls: int
    ratio: float | None = None


@dataclass(frozen=True)
class SideResult:
    """What came of one side.

    Attributes:
        file_bytes: size of the file.
        start_ms: to open the model in a process that has imported everything; compiling happens later and is untimed.
        memory: bytes, from before the model was opened to the most that the process took.
        accuracy: on the whole test set, in [0, 1]; None where it was not measured.
        timings: one a batch size, in their order; none where the side failed, and `note` says why.
    """

    side: Side
    file_bytes: int | None = None
    start_ms: float | None = None
    memory: int | None = None
    accuracy: float | None = None
    timings: tuple[Timing, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class DeploymentBenchmark:
    """All sides, and what they were measured on; `notes` say what was left out, and why."""

    device: str
    cores: int
    libraries: dict[str, str]
    quick: bool
    batch_sizes: tuple[int, ...]
    seconds: float
    sides: tuple[SideResult, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def bench_deploy(
    models: Sequence[Path] = (),
    *,
    checkpoint: Path | None = None,
    data: str | None = None,
    batch_sizes: Iterable[int] = BATCH_SIZES,
    quick: bool = False,
    progress: Progress | None = None,
) -> DeploymentBenchmark:
    """Time a network in every form.

    Args:
        models: ONNX files; the first is what the others are compared with. By default the shipped one.
        checkpoint: for PyTorch's side; by default the shipped one, and no such side where that is missing.
        data: as for `find_data`, but nothing is fetched: without data there is no accuracy.
        batch_sizes: images a call, in the order in which they are measured.
        quick: one short round, nothing compiled, no accuracy.
        progress: told what is being done.

    Raises:
        UsageError: a batch is not of 1 to `LARGEST_BATCH` images.
        ToolkitError: one of the files cannot be opened.
    """
    start, tell = time.monotonic(), progress or (lambda text: None)
    batch_sizes = tuple(batch_sizes)
    if wrong := [size for size in batch_sizes if not 1 <= size <= LARGEST_BATCH]:
        raise UsageError(f"a batch has 1 to {LARGEST_BATCH} images, not {wrong[0]}")
    found, notes = sides(models or [SHIPPED_MODEL], checkpoint, quick=quick)
    accuracies: dict[str, float] = {}
    if not quick:
        accuracies, unmeasured = _accuracies(found, data, tell)
        notes += unmeasured
    results = _measure(found, batch_sizes, quick=quick, tell=tell)
    return DeploymentBenchmark(
        device=device_name(choose_device("auto")),
        cores=available_cores(),
        libraries={"torch": version("torch"), "onnxruntime": onnxruntime.__version__},
        quick=quick,
        batch_sizes=batch_sizes,
        seconds=time.monotonic() - start,
        sides=tuple(_with_ratios(dataclasses.replace(r, accuracy=accuracies.get(r.side.file)) for r in results)),
        notes=tuple(notes),
    )


def sides(models: Sequence[Path], checkpoint: Path | None, *, quick: bool = False) -> tuple[list[Side], list[str]]:
    """What can be measured here, and notes on what cannot. Raises ToolkitError where a file cannot be opened."""
    opened = {path: open_model(path, provider="cpu") for path in models}
    notes: list[str] = []
    found: list[Side] = []
    for place in ("cpu", *_other_providers(models[0], notes)):
        found += [Side("onnx", str(path), place) for path in models]
        if place == "cpu":
            found += [Side("bare", str(path), place) for path in models if _can_be_bare(opened[path])]
    if checkpoint is None and SHIPPED_CHECKPOINT.is_file():
        checkpoint = SHIPPED_CHECKPOINT
    if checkpoint is None:
        notes.append("PyTorch: not measured, no --checkpoint was given and none is shipped")
        return found, notes
    if not checkpoint.is_file():
        raise ToolkitError(f"no checkpoint at {checkpoint}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    kinds = ["eager"] if quick else ["eager", "compiled"]
    return found + [Side(kind, str(checkpoint), device) for device in devices for kind in kinds], notes


def _can_be_bare(session: Session) -> bool:
    """Whether the comparison is wanted: of float32 files, whose interface a bare session can be fed as it is."""
    return session.metadata.get("precision", "fp32") == "fp32" and session.input_form == "uint8-nhwc"


def _other_providers(model: Path, notes: list[str]) -> list[str]:
    content, opens = read_model(model), []
    for provider in ("cuda", "tensorrt"):
        try:
            probe(content, provider=provider)
        except ToolkitError as error:
            notes.append(f"{provider}: not measured, {error}")
        else:
            opens.append(provider)
    return opens


def _accuracies(found: Sequence[Side], data: str | None, tell: Progress) -> tuple[dict[str, float], list[str]]:
    """Accuracy of each file, as far as the data are there, and why one is missing."""
    accuracies: dict[str, float] = {}
    notes: list[str] = []
    try:
        source = find_data(data, fetch=False)
    except ToolkitError as error:
        return {}, [f"accuracy: not measured, {error}"]
    for file, side in {side.file: side for side in found}.items():
        tell(f"accuracy of {file}")
        try:
            accuracies[file] = _accuracy(side, source)
        except ToolkitError as error:
            notes.append(f"accuracy: not measured, {error}")
    return accuracies, notes


def _accuracy(side: Side, source: DataSource) -> float:
    place = {"device": "cpu"} if side.kind in ("eager", "compiled") else {"provider": "cpu"}
    return evaluate(Path(side.file), source=source, **place).accuracy


def _measure(found: list[Side], batch_sizes: tuple[int, ...], *, quick: bool, tell: Progress) -> list[SideResult]:
    workers: list[_SideWorker] = []
    rounds, seconds = (1, QUICK_SECONDS) if quick else (ROUNDS, SECONDS_A_ROUND)
    with tempfile.TemporaryDirectory(prefix="cifar-bench-", ignore_cleanup_errors=True) as cache:
        try:
            for side in found:
                tell(f"starting {side.name}")
                workers.append(_SideWorker(side, cache=cache))
            for batch_size in batch_sizes:
                for number in range(rounds):
                    tell(f"batch {batch_size}: round {number + 1}")
                    for worker in workers:
                        worker.time(batch_size, seconds)
            return [worker.finish() for worker in workers]
        finally:
            for worker in workers:
                worker.stop()


class _SideWorker:
    """A process of `toolkit.bench.deploy_worker`, and what it has measured so far."""

    def __init__(self, side: Side, *, cache: str) -> None:
        self.side = side
        self.calls: dict[int, list[list[float]]] = {}  # batch size -> a list a round: milliseconds of each call
        self.worker = Worker(
            "toolkit.bench.deploy_worker", dataclasses.asdict(side), environment={"TORCHINDUCTOR_CACHE_DIR": cache}
        )

    def time(self, batch_size: int, seconds: float) -> None:
        """One round."""
        answer = self.worker.ask({"batch_size": batch_size, "seconds": seconds})
        if taken := answer.get("milliseconds"):
            self.calls.setdefault(batch_size, []).append(taken)

    def finish(self) -> SideResult:
        """Let the process end; what it measured."""
        memory = self.worker.finish().get("memory")
        failure = self.worker.failure
        return SideResult(
            side=self.side,
            file_bytes=Path(self.side.file).stat().st_size,
            start_ms=self.worker.ready.get("start_ms"),
            memory=memory,
            timings=() if failure else tuple(_timing(size, rounds) for size, rounds in self.calls.items()),
            note=failure,
        )

    def stop(self) -> None:
        self.worker.stop()


def _timing(batch_size: int, rounds: list[list[float]]) -> Timing:
    speeds = tuple(1e3 * batch_size * len(taken) / sum(taken) for taken in rounds)
    every = np.concatenate(rounds)
    p50, p95, p99 = (float(value) for value in np.percentile(every, [50, 95, 99]))
    return Timing(batch_size, p50, p95, p99, statistics.median(speeds), speeds, len(every))


def _with_ratios(results: Iterable[SideResult]) -> list[SideResult]:
    """The ratios filled in: to the first side, which is the first ONNX file on the CPU."""
    results = list(results)
    baseline = {timing.batch_size: timing.images_per_second for timing in results[0].timings}
    return [dataclasses.replace(r, timings=tuple(_rated(timing, baseline) for timing in r.timings)) for r in results]


def _rated(timing: Timing, baseline: dict[int, float]) -> Timing:
    reference = baseline.get(timing.batch_size)
    return dataclasses.replace(timing, ratio=timing.images_per_second / reference if reference else None)
