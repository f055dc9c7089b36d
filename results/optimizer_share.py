"""Measure the optimizer's share of a training step on the CPU, for SGD, Adam and Muon at batch 128.

    python -m results.optimizer_share [--steps 40] [--output results/optimizer-share/one-thread.json]

Steps and optimizers are those of the toolkit, on random images. The sides are timed in turn, one step each, and medians
over all steps are reported. Run it on an idle machine; OMP_NUM_THREADS sets the number of threads.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from models import build_model
from toolkit.device import device_name, keep_freed_memory, limit_threads
from toolkit.recipes.recipe import Recipe
from toolkit.training.augment import pad
from toolkit.training.optimizers import make_optimizer
from toolkit.training.step import TrainingStep

OPTIMIZERS = ("SGD", "Adam", "Muon")
CROP_SIZES = (24, 32)
BATCH_SIZE = 128
WARM_UP_STEPS = 3


class TimedSteps:
    """Training steps, and the seconds that the optimizer takes of each."""

    def __init__(self, optimizer: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        recipe = Recipe.from_dict({"optimizer": optimizer, "batch_size": BATCH_SIZE})
        network = build_model("resnet20").to(memory_format=torch.channels_last)
        images = torch.randint(0, 256, (BATCH_SIZE, 3, 32, 32), dtype=torch.uint8)
        labels = torch.randint(0, 10, (BATCH_SIZE,))
        self.optimizer = make_optimizer(network, recipe)
        self.step = TrainingStep(
            network, self.optimizer, recipe=recipe, images=pad(images, 4), labels=labels, dtype=dtype
        )
        self.optimizer_seconds = 0.0
        self.optimizer.register_step_pre_hook(self._start)
        self.optimizer.register_step_post_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.optimizer_seconds = time.perf_counter() - self._started

    def time(self, crop_size: int) -> tuple[float, float]:
        """Train on one batch; return the seconds of the step and of the optimizer in it."""
        start = time.perf_counter()
        self.step(torch.randperm(BATCH_SIZE), 1e-3, crop_size=crop_size)
        return time.perf_counter() - start, self.optimizer_seconds


def measure(steps: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return a row for each optimizer and crop size, with medians in milliseconds."""
    rows = []
    for crop_size in CROP_SIZES:
        sides = {name: TimedSteps(name, dtype) for name in OPTIMIZERS}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in OPTIMIZERS}
        for number in range(WARM_UP_STEPS + steps):
            for name, side in sides.items():
                timed = side.time(crop_size)
                if number >= WARM_UP_STEPS:
                    seconds[name].append(timed)
        for name, pairs in seconds.items():
            step, optimizer = (1e3 * statistics.median(values) for values in zip(*pairs, strict=True))
            rows.append({"optimizer": name, "crop_size": crop_size, "step_ms": step, "optimizer_ms": optimizer})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    limit_threads()
    keep_freed_memory()
    figures = {
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "precision": "bfloat16",
        "batch_size": BATCH_SIZE,
        "steps": options.steps,
        "rows": measure(options.steps, torch.bfloat16),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
