"""`cifar bench train`: our training steps beside the conventional loop, on the machine at hand.

Each variant runs in a process of its own, with the settings that it would have by default. The processes of one batch
size live side by side, and train in turn for a few seconds, round after round; while one trains, the others wait. The
median of the rounds counts. On CUDA none of this has run yet.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from toolkit.bench.harness import Worker
from toolkit.cores import available_cores
from toolkit.device import choose_device, choose_dtype, device_name
from toolkit.errors import UsageError

BATCH_SIZES = (128, 32, 512)
IMAGES = 50_000
ROUNDS = 3
SECONDS_A_ROUND = {"cpu": 4.0, "cuda": 1.5}  # of each variant
GPU_TIME_LIMIT = 360.0  # seconds after which no process is started, so that all of it stays under eight minutes

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """What one process trains.

    Attributes:
        batch_size: images a step.
        step: "conventional", "eager" or "graph".
        precision: "float32" or "bfloat16", of the forward pass.
        keeps_freed_memory: whether the C library keeps freed activations (`toolkit.device`).
    """

    batch_size: int
    step: str
    precision: str
    keeps_freed_memory: bool = True

    @property
    def name(self) -> str:
        if self.step == "conventional":
            return "conventional loop"
        rest = "" if self.keeps_freed_memory else ", freed memory not kept"
        return f"{self.step}, {self.precision}{rest}"


@dataclass(frozen=True)
class Row:
    """What came of one variant.

    Attributes:
        variant: what was trained.
        images_per_second: the median over the rounds; None where nothing could be measured, and `note` says why.
        rounds: images a second in each round.
        ratio: to the conventional loop at the same batch size, of the medians; None where either is missing.
        startup_seconds: from starting the process to its first step: imports, data, network.
        first_steps_seconds: of the first five steps: compiling, capturing and warming up. A compiled variant finds in
            the compiler's cache what those before it at the same batch size put there; the first finds nothing.
        peak_memory: bytes; on CUDA what torch gave out of the GPU's memory, else the process's resident memory without
            the loader's workers.
        note: what went otherwise than planned.
    """

    variant: Variant
    images_per_second: float | None = None
    rounds: tuple[float, ...] = ()
    ratio: float | None = None
    startup_seconds: float | None = None
    first_steps_seconds: float | None = None
    peak_memory: int | None = None
    note: str = ""


@dataclass(frozen=True)
class TrainingBenchmark:
    """All rows, and what they were measured on."""

    device: str
    cores: int
    libraries: dict[str, str]
    model: str
    images: int
    quick: bool
    seconds: float
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def bench_train(
    device: str = "auto",
    *,
    batch_sizes: Iterable[int] = BATCH_SIZES,
    quick: bool = False,
    images: int = IMAGES,
    progress: Progress | None = None,
) -> TrainingBenchmark:
    """Time every variant at every batch size.

    Args:
        device: "auto", or a torch device.
        batch_sizes: in the order in which they are measured.
        quick: one short round.
        images: how many random images there are.
        progress: told what is being measured.

    Raises:
        UsageError: the device cannot be used, or a batch is not of 1 to `images` images.
    """
    batch_sizes = tuple(batch_sizes)
    if wrong := [size for size in batch_sizes if not 1 <= size <= images]:
        raise UsageError(f"a batch has 1 to {images} images, not {wrong[0]}")
    start = time.monotonic()
    chosen = choose_device(device)
    rows: list[Row] = []
    for batch_size in batch_sizes:
        with tempfile.TemporaryDirectory(prefix="cifar-bench-", ignore_cleanup_errors=True) as cache:
            group = _Group(chosen, images=images, cache=cache, started=start, progress=progress or (lambda text: None))
            rows += group.measure(variants(chosen, batch_size), quick=quick)
    return TrainingBenchmark(
        device=device_name(chosen),
        cores=available_cores(),
        libraries={name: version(name) for name in ("torch", "torchvision")},
        model="resnet20",
        images=images,
        quick=quick,
        seconds=time.monotonic() - start,
        rows=tuple(rows),
    )


def variants(device: torch.device, batch_size: int) -> list[Variant]:
    """What is measured on a device: the conventional loop first, then ours from the plainest to the most elaborate."""
    native = str(choose_dtype("auto", device)).removeprefix("torch.")
    found = [Variant(batch_size, "conventional", "float32", keeps_freed_memory=False)]
    found += [Variant(batch_size, "eager", precision) for precision in dict.fromkeys(["float32", native])]
    if device.type == "cuda":
        found.append(Variant(batch_size, "graph", native))
    if device.type == "cpu" and sys.platform == "linux":
        found.append(Variant(batch_size, "eager", native, keeps_freed_memory=False))
    return found


class _Group:
    """The processes of one batch size."""

    def __init__(self, device: torch.device, *, images: int, cache: str, started: float, progress: Progress) -> None:
        self.device, self.images, self.cache, self.progress = device, images, cache, progress
        self.deadline = started + GPU_TIME_LIMIT if device.type == "cuda" else float("inf")

    def measure(self, variants: list[Variant], *, quick: bool) -> list[Row]:
        workers: dict[Variant, _Worker] = {}
        try:
            for variant in variants:
                if time.monotonic() < self.deadline:
                    self.progress(f"batch {variant.batch_size}: starting {variant.name}")
                    workers[variant] = _Worker(variant, self.device, images=self.images, cache=self.cache)
            for number in range(1 if quick else ROUNDS):
                if number > 0 and time.monotonic() > self.deadline:
                    break
                self._round(number, workers, seconds=0.5 if quick else SECONDS_A_ROUND.get(self.device.type, 4.0))
            rows = [workers[v].finish() if v in workers else Row(v, note="time was up") for v in variants]
        finally:
            for worker in workers.values():
                worker.stop()
        baseline = rows[0].images_per_second
        return [dataclasses.replace(row, ratio=_ratio(row.images_per_second, baseline)) for row in rows]

    def _round(self, number: int, workers: "dict[Variant, _Worker]", *, seconds: float) -> None:
        for variant, worker in workers.items():
            self.progress(f"batch {variant.batch_size}: round {number + 1}, {variant.name}")
            worker.train(seconds)


def _ratio(speed: float | None, baseline: float | None) -> float | None:
    return None if speed is None or baseline is None else speed / baseline


class _Worker:
    """A process of `toolkit.bench.train_worker`; one that fails keeps its reason, and the others go on."""

    def __init__(self, variant: Variant, device: torch.device, *, images: int, cache: str) -> None:
        self.variant, self.rounds = variant, list[float]()
        spec = dataclasses.asdict(variant) | {"device": str(device), "images": images, "workers": available_cores()}
        cache_folder = {"TORCHINDUCTOR_CACHE_DIR": cache}
        self.worker = Worker("toolkit.bench.train_worker", spec, environment=cache_folder)

    def train(self, seconds: float) -> None:
        """One round."""
        if speed := self.worker.ask(seconds).get("images_per_second"):
            self.rounds.append(speed)

    def finish(self) -> Row:
        """Let the process end; what it measured."""
        memory = self.worker.finish().get("peak_memory")
        ready = self.worker.ready
        return Row(
            variant=self.variant,
            images_per_second=statistics.median(self.rounds) if self.rounds else None,
            rounds=tuple(self.rounds),
            startup_seconds=ready["ready_at"] - self.worker.started if ready else None,
            first_steps_seconds=ready.get("first_steps_seconds"),
            peak_memory=memory,
            note="; ".join(filter(None, [*ready.get("notes", []), self.worker.failure])),
        )

    def stop(self) -> None:
        self.worker.stop()
