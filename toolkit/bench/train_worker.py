"""One variant of `cifar bench train`, in a process of its own: it takes its orders on stdin, one a line, as JSON.

The process answers with a line once it is ready, then with one for each number of seconds that it is asked to train
for, and with a last one, its peak memory, when its input ends. The images are random: how fast they are trained on does
not depend on what they show, and no data set is needed.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from toolkit.bench.harness import Answer, peak_memory, run_worker

CLASSES = 10
WARM_UP_STEPS = 5  # untimed: the step's own warm-up and recording happen here
LEAST_STEPS = 3  # of a timed stretch, however slow
LEARNING_RATE = 0.05


class Trainer(Protocol):
    """Something that trains step by step, for ever."""

    def steps(self, count: int) -> None:
        """Take so many steps and wait for the device."""

    def settle(self) -> None:
        """Bring whatever works ahead into its steady state; untimed."""


class Ours:
    """This toolkit's step, as `toolkit.training.trainer` drives it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch

        from models import build_model
        from toolkit.device import keep_freed_memory, let_cudnn_choose, use_available_cores
        from toolkit.recipes.recipe import Recipe
        from toolkit.training.augment import padded
        from toolkit.training.optimizers import make_optimizer
        from toolkit.training.step import TrainingStep

        if spec["keeps_freed_memory"]:
            keep_freed_memory()
        use_available_cores()
        device = torch.device(spec["device"])
        let_cudnn_choose(device)
        recipe = Recipe.from_dict(  # without mixup, which the conventional loop does not have either
            {"batch_size": spec["batch_size"], "data_augmentation": {"mixup_alpha": 0.0}}
        )
        torch.manual_seed(0)
        network = build_model("resnet20", dropout_rate=recipe.dropout_rate)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randint(0, 256, (spec["images"], 3, 32, 32), dtype=torch.uint8)
        self.notes: list[str] = []
        self.step = TrainingStep(
            network,
            make_optimizer(network, recipe),
            recipe=recipe,
            images=padded(images, recipe.data_augmentation.crop_padding).to(device),
            labels=torch.randint(0, CLASSES, (spec["images"],)).to(device),
            dtype=getattr(torch, spec["precision"]),
            mode=spec["step"],
            note=self.notes.append,
        )
        self.batches = self._batches(spec["images"], spec["batch_size"], device)

    def _batches(self, images: int, batch_size: int, device: Any) -> Iterator[Any]:
        import torch

        while True:
            yield from torch.randperm(images, device=device).split(batch_size)
            self.step.take_sums()  # as at an epoch's end

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step(next(self.batches), LEARNING_RATE)
        self.step.take_sums()

    def settle(self) -> None:
        pass


class PilImages:
    """A data set as torchvision's CIFAR10 is one: a PIL image and its label, by index."""

    def __init__(self, images: Any, labels: list[int], transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Conventional:
    """The loop of the tutorials: DataLoader, torchvision's transforms on PIL images, float32, defaults everywhere."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch
        from torch.utils.data import DataLoader
        from torchvision import transforms

        from models import build_model
        from toolkit.data.cifar import MEAN, STD

        self.device = torch.device(spec["device"])
        self.notes: list[str] = []
        torch.manual_seed(0)
        images = torch.randint(0, 256, (spec["images"], 32, 32, 3), dtype=torch.uint8).numpy()
        labels = torch.randint(0, CLASSES, (spec["images"],)).tolist()
        chain = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        dataset: Any = PilImages(images, labels, transforms.Compose([*chain, transforms.Normalize(MEAN, STD)]))
        self.workers = spec["workers"]
        self.loader = DataLoader(dataset, spec["batch_size"], shuffle=True, num_workers=self.workers)
        self.network = build_model("resnet20").to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
        self.criterion = torch.nn.CrossEntropyLoss()
        self.batches = self._batches()

    def _batches(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def steps(self, count: int) -> None:
        loss = None
        for _ in range(count):
            images, labels = next(self.batches)
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criterion(self.network(images), labels)
            loss.backward()
            self.optimizer.step()
        if loss is not None:
            loss.item()

    def settle(self) -> None:
        """Use up what the workers prepared while nothing was timed: two batches each."""
        self.steps(2 * self.workers)


def serve(spec: dict[str, Any], answer: Answer) -> None:
    """Build the variant, then train for as long as each line of stdin says."""
    trainer: Any = Conventional(spec) if spec["step"] == "conventional" else Ours(spec)
    ready = time.time()
    trainer.steps(WARM_UP_STEPS)
    first_steps = time.time() - ready
    seconds_a_step = _timed(trainer, LEAST_STEPS) / LEAST_STEPS
    answer({"ready_at": ready, "first_steps_seconds": first_steps, "notes": trainer.notes})
    for line in sys.stdin:
        trainer.settle()
        steps = max(LEAST_STEPS, math.ceil(json.loads(line) / seconds_a_step))
        seconds = _timed(trainer, steps)
        seconds_a_step = seconds / steps
        answer({"images_per_second": spec["batch_size"] / seconds_a_step})
    answer({"peak_memory": _peak_memory(spec["device"])})


def _timed(trainer: Trainer, steps: int) -> float:
    start = time.perf_counter()
    trainer.steps(steps)
    return time.perf_counter() - start


def _peak_memory(device: str) -> int | None:
    """Bytes: of the GPU's memory, what torch gave out at most; of a CPU's, the process itself without its workers."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


if __name__ == "__main__":
    run_worker(serve)
