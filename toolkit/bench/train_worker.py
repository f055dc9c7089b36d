"""The worker of `cifar bench train`: trains resnet20 on random images, by the toolkit's step or a conventional loop.

The content of the images does not affect the speed, and no data set is needed.
"""

import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

from toolkit.bench.worker import Answer, Orders, peak_memory, run_worker

CLASSES = 10
WARM_UP_STEPS = 5  # untimed: the step warms up and records in them
MIN_STEPS = 3  # per round, however slow
LEARNING_RATE = 0.05


class Trainer(Protocol):
    """Trains step by step, without end."""

    notes: list[str]

    def train(self, steps: int) -> None:
        """Take `steps` steps and wait for the device."""

    def settle(self) -> None:
        """Use up batches prepared in advance, so that the next steps run at a steady speed; untimed."""


class ToolkitTrainer:
    """The toolkit's step, driven as `toolkit.training.trainer` does."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        from models import build_model
        from toolkit.device import keep_freed_memory, let_cudnn_choose, use_available_cores
        from toolkit.recipes.recipe import Recipe
        from toolkit.training.augment import padded
        from toolkit.training.optimizers import make_optimizer
        from toolkit.training.step import TrainingStep

        if options["keeps_freed_memory"]:
            keep_freed_memory()
        use_available_cores()
        device = torch.device(options["device"])
        let_cudnn_choose(device)
        recipe = Recipe.from_dict(  # no mixup: the conventional loop has none
            {"batch_size": options["batch_size"], "data_augmentation": {"mixup_alpha": 0.0}}
        )
        torch.manual_seed(0)
        network = build_model("resnet20", dropout_rate=recipe.dropout_rate)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randint(0, 256, (options["images"], 3, 32, 32), dtype=torch.uint8)
        self.notes: list[str] = []
        self.step = TrainingStep(
            network,
            make_optimizer(network, recipe),
            recipe=recipe,
            images=padded(images, recipe.data_augmentation.crop_padding).to(device),
            labels=torch.randint(0, CLASSES, (options["images"],)).to(device),
            dtype=getattr(torch, options["precision"]),
            mode=options["step"],
            note=self.notes.append,
        )
        self.batches = self._batches(options["images"], options["batch_size"], device)

    def _batches(self, images: int, batch_size: int, device: Any) -> Iterator[Any]:
        import torch

        while True:
            yield from torch.randperm(images, device=device).split(batch_size)
            self.step.take_sums()  # as at the end of an epoch

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step(next(self.batches), LEARNING_RATE)
        self.step.take_sums()

    def settle(self) -> None:
        pass


class PilImages:
    """A data set like torchvision's CIFAR10: a PIL image and its label, by index."""

    def __init__(self, images: Any, labels: list[int], transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class ConventionalTrainer:
    """The loop of the tutorials: DataLoader, torchvision's transforms on PIL images, float32, all defaults."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch
        from torch.utils.data import DataLoader
        from torchvision import transforms

        from models import build_model
        from toolkit.data.cifar import MEAN, STD

        self.device = torch.device(options["device"])
        self.notes: list[str] = []
        torch.manual_seed(0)
        images = torch.randint(0, 256, (options["images"], 32, 32, 3), dtype=torch.uint8).numpy()
        labels = torch.randint(0, CLASSES, (options["images"],)).tolist()
        chain = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        dataset: Any = PilImages(images, labels, transforms.Compose([*chain, transforms.Normalize(MEAN, STD)]))
        self.workers = options["workers"]
        self.loader = DataLoader(dataset, options["batch_size"], shuffle=True, num_workers=self.workers)
        self.network = build_model("resnet20").to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
        self.criterion = torch.nn.CrossEntropyLoss()
        self.batches = self._batches()

    def _batches(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def train(self, steps: int) -> None:
        loss = None
        for _ in range(steps):
            images, labels = next(self.batches)
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criterion(self.network(images), labels)
            loss.backward()
            self.optimizer.step()
        if loss is not None:
            loss.item()

    def settle(self) -> None:
        """Use up the two batches that each worker prepared while nothing was timed."""
        self.train(2 * self.workers)


def serve(options: dict[str, Any], orders: Orders, answer: Answer) -> None:
    """Build the trainer, then train for the seconds of each order."""
    trainer: Trainer = ConventionalTrainer(options) if options["step"] == "conventional" else ToolkitTrainer(options)
    ready = time.time()
    trainer.train(WARM_UP_STEPS)
    first_steps = time.time() - ready
    seconds_per_step = time_steps(trainer, MIN_STEPS) / MIN_STEPS
    answer(
        start_seconds=ready - options["started"],
        figures={"first_steps_seconds": first_steps},
        note="; ".join(trainer.notes),
    )
    for order in orders:
        trainer.settle()
        steps = max(MIN_STEPS, math.ceil(order["seconds"] / seconds_per_step))
        seconds_per_step = time_steps(trainer, steps) / steps
        answer(images_per_second=options["batch_size"] / seconds_per_step)
    answer(memory=_peak_memory(options["device"]))


def time_steps(trainer: Trainer, steps: int) -> float:
    """Seconds that `steps` steps take."""
    start = time.perf_counter()
    trainer.train(steps)
    return time.perf_counter() - start


def _peak_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


if __name__ == "__main__":
    run_worker(serve)
