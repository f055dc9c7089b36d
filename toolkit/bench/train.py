"""`cifar bench train`: the toolkit's training steps compared with a conventional loop, on this machine.

The processes of one batch size run side by side with their default settings and train in turn for a few seconds.
"""

import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from toolkit.bench.harness import measure
from toolkit.bench.result import BenchmarkResult, Result, Side
from toolkit.cores import available_cores
from toolkit.device import choose_device, choose_dtype, device_name
from toolkit.errors import UsageError
from toolkit.reporting import Note, ignore

BATCH_SIZES = (128, 32, 512)
IMAGES = 50_000
ROUNDS, QUICK_ROUNDS = 3, 1
SECONDS = {"cpu": 4.0, "cuda": 1.5}  # of one round of one side
QUICK_SECONDS = 0.5
GPU_TIME_LIMIT = 360.0  # seconds after which no process is started, so that the whole stays under eight minutes


def bench_train(
    device: str = "auto",
    *,
    batch_sizes: Iterable[int] = BATCH_SIZES,
    quick: bool = False,
    images: int = IMAGES,
    progress: Note = ignore,
) -> BenchmarkResult:
    """Time every kind of training step of resnet20 at every batch size.

    `start_seconds` of a side is the time from the start of its process to its first step: imports, data, network. Its
    figure `first_steps_seconds` is the time of the first five steps: warm-up and graph capture. `memory` is the peak of
    what torch allocated on CUDA; elsewhere the peak resident memory of the process, without the workers of its data
    loader. Ratios refer to the conventional loop.

    Args:
        device: "auto", or a torch device.
        batch_sizes: images per step, in the order in which they are measured.
        quick: one short round.
        images: number of random training images.
        progress: called with a description of the next measurement.

    Raises:
        UsageError: the device cannot be used, or a batch size is outside 1 to `images`.
    """
    start, batch_sizes = time.monotonic(), tuple(batch_sizes)
    if wrong := [size for size in batch_sizes if not 1 <= size <= images]:
        raise UsageError(f"a batch has 1 to {images} images, not {wrong[0]}")
    chosen = choose_device(device)
    results: list[Result] = []
    for batch_size in batch_sizes:
        found = measure(
            list_sides(chosen, batch_size, images=images),
            [batch_size],
            rounds=QUICK_ROUNDS if quick else ROUNDS,
            seconds=QUICK_SECONDS if quick else SECONDS.get(chosen.type, 4.0),
            deadline=start + GPU_TIME_LIMIT if chosen.type == "cuda" else float("inf"),
            progress=progress,
        )
        results += [replace(r, note=f"batch {batch_size}: {r.note}") if r.note else r for r in found]
    return BenchmarkResult(
        benchmark="train",
        device=device_name(chosen),
        cores=available_cores(),
        libraries={name: version(name) for name in ("torch", "torchvision")},
        settings={"model": "resnet20", "images": images, "quick": quick},
        seconds=time.monotonic() - start,
        results=tuple(results),
    )


def list_sides(device: torch.device, batch_size: int, *, images: int = IMAGES) -> list[Side]:
    """The sides of a device: the conventional loop, then the toolkit's steps from the plainest on."""

    def side(step: str, precision: str, *, keeps_freed_memory: bool = True) -> Side:
        options: dict[str, Any] = {
            "step": step,  # "conventional", "eager" or "graph"
            "precision": precision,  # of the forward pass
            "keeps_freed_memory": keeps_freed_memory,  # whether the C library keeps freed activations
            "batch_size": batch_size,
            "device": str(device),
            "images": images,
        }
        name = f"{step}, {precision}" + ("" if keeps_freed_memory else ", freed memory not kept")
        if step == "conventional":
            name, options["workers"] = "conventional loop", available_cores()
        return Side(name, "toolkit.bench.train_worker", options)

    native = str(choose_dtype("auto", device)).removeprefix("torch.")
    sides = [side("conventional", "float32", keeps_freed_memory=False)]
    sides += [side("eager", precision) for precision in dict.fromkeys(["float32", native])]
    if device.type == "cuda":
        sides.append(side("graph", native))
    if device.type == "cpu" and sys.platform == "linux":
        sides.append(side("eager", native, keeps_freed_memory=False))
    return sides
