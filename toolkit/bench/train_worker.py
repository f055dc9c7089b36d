"""The worker of `cifar bench train`: trains resnet20 on random images, by the toolkit's step or a conventional loop.

The content of the images does not affect the speed, and no data set is needed.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from models import build_model
from toolkit.bench.worker import Workload, read_peak_memory, run_worker

CLASSES = 10
WARM_UP_STEPS = 5  # not in the timings: warm-up and graph capture
MIN_STEPS = 3  # per round, however slow
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Trainer:
    """A training loop, one step at a time.

    Attributes:
        step: takes one step.
        wait: waits until the device has finished all steps.
        prefetched: number of batches that may be prepared between rounds; each round first takes them untimed.
        notes: what differs from the request.
    """

    step: Callable[[], object]
    wait: Callable[[], object]
    prefetched: int = 0
    notes: list[str] = field(default_factory=list)

    def time_steps(self, count: int) -> float:
        """Seconds that `count` steps take."""
        start = time.perf_counter()
        for _ in range(count):
            self.step()
        self.wait()
        return time.perf_counter() - start


def make_toolkit_trainer(options: dict[str, Any]) -> Trainer:
    """The toolkit's step, driven as `toolkit.training.trainer` does."""
    from toolkit.device import enable_cudnn_benchmark, keep_freed_memory, limit_threads
    from toolkit.recipes.recipe import Recipe
    from toolkit.training.augment import pad
    from toolkit.training.optimizers import make_optimizer
    from toolkit.training.step import TrainingStep

    if options["keeps_freed_memory"]:
        keep_freed_memory()
    limit_threads()
    device = torch.device(options["device"])
    enable_cudnn_benchmark(device)
    recipe = Recipe.from_dict(  # no mixup: the conventional loop has none
        {"batch_size": options["batch_size"], "data_augmentation": {"mixup_alpha": 0.0}}
    )
    torch.manual_seed(0)
    network = build_model("resnet20", dropout_rate=recipe.dropout_rate)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randint(0, 256, (options["images"], 3, 32, 32), dtype=torch.uint8)
    notes: list[str] = []
    step = TrainingStep(
        network,
        make_optimizer(network, recipe),
        recipe=recipe,
        images=pad(images, recipe.data_augmentation.crop_padding).to(device),
        labels=torch.randint(0, CLASSES, (options["images"],)).to(device),
        dtype=getattr(torch, options["precision"]),
        mode=options["step"],
        note=notes.append,
    )
    epochs = (torch.randperm(len(images), device=device).split(recipe.batch_size) for _ in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    return Trainer(step=lambda: step(next(batches), LEARNING_RATE), wait=step.take_sums, notes=notes)


@dataclass(frozen=True)
class PilImages:
    """A data set like torchvision's CIFAR10: a PIL image and its label, by index."""

    images: Any  # uint8 (N, 32, 32, 3)
    labels: list[int]
    transform: Any

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def make_conventional_trainer(options: dict[str, Any]) -> Trainer:
    """The loop of the tutorials: DataLoader, torchvision's transforms on PIL images, float32, all defaults."""
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from toolkit.data.cifar import MEAN, STD

    device = torch.device(options["device"])
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options["images"], 32, 32, 3), dtype=torch.uint8).numpy()
    labels = torch.randint(0, CLASSES, (options["images"],)).tolist()
    chain = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    dataset: Any = PilImages(images, labels, transforms.Compose([*chain, transforms.Normalize(MEAN, STD)]))
    loader = DataLoader(dataset, options["batch_size"], shuffle=True, num_workers=options["workers"])
    network = build_model("resnet20").to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    criterion = torch.nn.CrossEntropyLoss()
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    loss = torch.zeros(())

    def step() -> None:
        nonlocal loss
        images, labels = (tensor.to(device) for tensor in next(batches))
        optimizer.zero_grad()
        loss = criterion(network(images), labels)
        loss.backward()
        optimizer.step()

    return Trainer(step, wait=lambda: loss.item(), prefetched=2 * options["workers"])


def prepare(options: dict[str, Any]) -> Workload:
    """Build the trainer and take the first steps."""
    make_trainer = make_conventional_trainer if options["step"] == "conventional" else make_toolkit_trainer
    trainer = make_trainer(options)
    start_seconds = time.time() - options["started"]
    first_steps = trainer.time_steps(WARM_UP_STEPS)
    seconds_per_step = trainer.time_steps(MIN_STEPS) / MIN_STEPS

    def run_round(batch_size: int, seconds: float) -> dict[str, Any]:
        nonlocal seconds_per_step
        trainer.time_steps(trainer.prefetched)
        steps = max(MIN_STEPS, math.ceil(seconds / seconds_per_step))
        seconds_per_step = trainer.time_steps(steps) / steps
        return {"images_per_second": batch_size / seconds_per_step}

    def memory() -> int | None:
        on_gpu = options["device"].startswith("cuda")
        return torch.cuda.max_memory_allocated(options["device"]) if on_gpu else read_peak_memory()

    figures = {"first_steps_seconds": first_steps}
    return Workload(run_round, memory, start_seconds=start_seconds, figures=figures, note="; ".join(trainer.notes))


if __name__ == "__main__":
    run_worker(prepare)
