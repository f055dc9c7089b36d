"""Runs to the end and their comparison; single steps, and graphs that are recorded without a GPU."""

import contextlib

import torch
from torch import nn

from tests.support.sources import colored_images
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import create_run, open_run
from toolkit.training.augment import pad
from toolkit.training.optimizers import make_optimizer
from toolkit.training.step import TrainingStep
from toolkit.training.trainer import train


class Stopped(Exception):
    """Ends a training from a callback."""


def train_epochs(run, source, epochs=None, **options):
    """Train a run on the CPU, to the end or for so many epochs; return the records of these epochs."""
    records = []

    def on_epoch(record):
        records.append(record)
        if len(records) == epochs:
            raise Stopped

    with contextlib.suppress(Stopped):
        train(run.read_recipe(), source=source, run=run, device="cpu", on_epoch=on_epoch, **options)
    return records


def run_all(recipe, source, root, **options):
    run = create_run(recipe, stem="run", root=root)
    return run, train_epochs(run, source, **options)


def weights_of(path):
    return load_checkpoint(path).weights


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(records):
    return [(r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy, r.learning_rate) for r in records]


def resumed_exactly(run, source, *, whole, records):
    """Resume the run to its end; its losses and checkpoints must be those of `whole`, which was never interrupted."""
    again = open_run(str(run.path))
    rest = train_epochs(again, source, resume=True)
    assert losses(rest) == losses(records)[len(records) - len(rest) :]
    assert [record["epoch"] for record in again.read_metrics()] == [record.epoch for record in records]
    for name in ("best", "last"):
        assert same_weights(weights_of(getattr(run, name)), weights_of(getattr(whole, name)))
    return len(rest)


def interrupt_after(steps):
    """A progress callback that interrupts the training after so many steps."""
    calls = iter(range(steps))

    def on_progress(done, images):
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return on_progress


PLAIN = {"random_crop": False, "horizontal_flip": False, "mixup_alpha": 0.0}


class SmallNetwork(nn.Sequential):
    """A convolution, BatchNorm and a linear layer: quick to compile."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))  # fmt: skip


def make_step(network=None, *, device="cpu", augmentation=PLAIN, batch_size=8, **options):
    """A step over 40 images whose network starts from the same weights each time."""
    torch.manual_seed(0)
    network = network or SmallNetwork()
    network = network.to(device, memory_format=torch.channels_last)
    values = {"batch_size": batch_size, "learning_rate": 0.1, "data_augmentation": augmentation}
    recipe = Recipe.from_dict(values | options.pop("recipe", {}))
    data = colored_images(40, seed=0)
    images = pad(data.images, recipe.data_augmentation.crop_padding).to(device)
    optimizer = make_optimizer(network, recipe)
    dtype = options.pop("dtype", torch.float32)
    return TrainingStep(
        network, optimizer, recipe=recipe, images=images, labels=data.labels.to(device), dtype=dtype, **options
    )


def losses_of(step, *, steps=6, size=8, seed=1, crop_size=32):
    """The loss of each of some steps on fixed batches."""
    torch.manual_seed(seed)
    batches = torch.randint(0, 40, (steps, size), generator=torch.Generator().manual_seed(2))
    losses = []
    for number, batch in enumerate(batches):
        step(batch.to(step.labels.device), 0.1 / (number + 1), crop_size=crop_size)
        losses.append(step.take_sums()[0] / size)
    return losses


class FakeGraphs:
    """Captures without a GPU: it keeps the step and runs it at each replay, after `before_replay`."""

    def __init__(self, *, fails: bool = False, before_replay=lambda: None, repeats: int = 1) -> None:
        self.fails, self.before_replay, self.repeats = fails, before_replay, repeats
        self.eager_steps, self.captures, self.replays = 0, 0, 0

    def run(self, work):
        self.eager_steps += 1
        work()

    def capture(self, work):
        self.captures += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

        def replay():
            self.replays += 1
            self.before_replay()
            for _ in range(self.repeats):
                work()

        return replay


def captured(step, graphs, notes=None):
    """The step with a stand-in for CUDA graphs."""
    step._captured = step._make_captured_step(graphs, ([] if notes is None else notes).append)
    return step
