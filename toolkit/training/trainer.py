"""The training loop: `train` yields one record an epoch, and keeps the best and the last checkpoint on disk.

All randomness of an epoch follows from the seed and the epoch's number alone. So a resumed run needs no generator's
state to go on exactly as the uninterrupted one would.
"""

import dataclasses
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from models import ResNet, build_model
from toolkit import __version__
from toolkit.data.dataset import DataSource, data_identity, require_same_data
from toolkit.data.images import Images
from toolkit.data.split import split_images
from toolkit.device import (
    choose_device,
    choose_dtype,
    device_name,
    keep_freed_memory,
    let_cudnn_choose,
    note_on_crowded_cores,
    use_available_cores,
)
from toolkit.errors import ToolkitError
from toolkit.evaluation.metrics import Metrics, compute_logits, measure
from toolkit.evaluation.plots import plot_confusion, plot_curves
from toolkit.recipes.recipe import Recipe
from toolkit.recipes.schedule import crop_size_of, learning_rate
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, teacher_identity
from toolkit.runs.folder import RunFolder
from toolkit.training.augment import padded
from toolkit.training.averaging import WeightAverage
from toolkit.training.distillation import require_fitting
from toolkit.training.optimizers import make_optimizer
from toolkit.training.step import StepMode, TrainingStep, choose_mode

Progress = Callable[[int, int], None]  # images of this epoch done, and in all
Note = Callable[[str], None]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave: a line of `metrics.jsonl`.

    Attributes:
        epoch: counted from 1.
        learning_rate: of the epoch's last step.
        train_loss: mean over the images, augmented, with the weights as they were at each step, the teacher's share
            included; nats.
        train_accuracy: likewise, in [0, 1]; under mixup a label counts by its share in the image.
        val_loss: after the epoch, without augmentation, of the averaged weights if the recipe averages them; None
            without validation images.
        val_accuracy: likewise, in [0, 1].
        seconds: wall time of the epoch, validation included.
        images_per_second: training images by the wall time of the steps alone.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    images_per_second: float


def train(
    recipe: Recipe,
    *,
    source: DataSource,
    run: RunFolder,
    device: str = "auto",
    resume: bool = False,
    teacher: Checkpoint | None = None,
    progress: Progress | None = None,
    mode: StepMode = "auto",
    note: Note | None = None,
) -> Iterator[EpochRecord]:
    """Train by `recipe`, yield a record after each epoch, and write the run folder's files.

    `last.pt` is there before the first step and is replaced after each epoch; `best.pt` holds the epoch with the
    highest validation accuracy, or the last epoch where no images are held out. Where the recipe averages the weights,
    the averages are what is validated and kept; `last.pt` holds the weights behind them as well, to go on from. When
    the last record has been taken, `summary.json` and the pictures are written, which marks the run as finished.

    Reseeds torch's default generators at each epoch's start.

    Args:
        recipe: a new run's; when resuming, that of the run folder.
        source: the data set; only its training images are read.
        run: from `create_run`; when resuming, from `open_run`.
        device: "auto", or a torch device.
        resume: go on after the last epoch on disk.
        teacher: what a new run by a recipe with a distillation weight learns from; the run keeps a copy, `teacher.pt`,
            from which it is resumed.
        progress: called after each step with the images done in this epoch, and those it has in all.
        mode: "eager", "graph" (captured as CUDA graphs), or "auto" for graphs on CUDA.
        note: told which kind of step is taken and why, where there is something to say.

    Raises:
        ToolkitError: the loss is no longer finite; the data, the recipe or the teacher are not those that the run
            began with; the teacher does not fit; another process trains in this folder; a file cannot be read or
            written.
        UsageError: the device cannot be used; no such split of the data; no such kind of step; a distillation weight
            without a teacher, or the reverse.
    """
    keep_freed_memory()
    use_available_cores()
    with run.locked():
        trainer = _Trainer(
            recipe,
            source=source,
            run=run,
            device=choose_device(device),
            teacher=_kept_teacher(run, recipe, source, given=teacher, resume=resume),
            mode=mode,
            note=note or (lambda text: None),
        )
        epochs_done = trainer.load() if resume else trainer.begin()
        for epoch in range(epochs_done + 1, recipe.epochs + 1):
            if trainer.patience_is_over(epoch - 1):
                break
            yield trainer.train_epoch(epoch, progress)
        trainer.finish()


class _Trainer:
    """The state of a run between two epochs: data, network, optimiser, and the best epoch so far."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        source: DataSource,
        run: RunFolder,
        device: torch.device,
        teacher: Checkpoint | None,
        mode: StepMode,
        note: Note,
    ) -> None:
        self.recipe, self.run, self.device, self.note = recipe, run, device, note
        self.dtype = choose_dtype(recipe.run.precision, device)
        self.precision = str(self.dtype).removeprefix("torch.")
        images = source.train()
        self.identity = data_identity(source.name, images)
        self.teacher = teacher
        self.teacher_identity = teacher_identity(teacher) if teacher else None
        if teacher is not None:
            require_same_data(teacher.data, self.identity, what="the teacher")
        self.class_names = source.class_names
        self.train_images, self.val_images = split_images(images, recipe.run.val_size)
        self.model_args: dict[str, Any] = {"num_classes": len(self.class_names), "dropout_rate": recipe.dropout_rate}
        let_cudnn_choose(device)
        self._seed(epoch=0)
        self.network: ResNet = build_model(recipe.run.model, **self.model_args)
        self._on_device(self.network)
        self.average = WeightAverage(self.network, recipe.ema_decay) if recipe.ema_decay > 0 else None
        # What is measured and kept:
        self.result: nn.Module = self.network if self.average is None else self.average.network
        self.optimizer = make_optimizer(self.network, recipe)
        self.step = TrainingStep(
            self.network,
            self.optimizer,
            recipe=recipe,
            images=padded(self.train_images.images, recipe.data_augmentation.crop_padding).to(device),
            labels=self.train_images.labels.to(device),
            dtype=self.dtype,
            teacher=self._on_device(teacher.network()) if teacher else None,
            average=self.average,
            mode=choose_mode(mode, device),
            note=note,
        )
        self.best_epoch, self.best_val_accuracy = 0, -math.inf
        self.told_of_crowd = False
        self.seconds = 0.0  # over all epochs, and over all the processes that trained them

    def _on_device(self, network: ResNet) -> ResNet:
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def begin(self) -> int:
        """Put the untrained network on disk, so that even a run that is killed at once can be resumed."""
        save_checkpoint(self._checkpoint(0, None, with_training=True), self.run.last)
        self.run.keep_metrics(0)  # of a run that goes on without its last checkpoint
        return 0

    def load(self) -> int:
        """Go back to the last epoch boundary on disk; returns how many epochs have been trained."""
        if not os.path.lexists(self.run.last):  # stopped before there was anything to save
            return self.begin()
        last = load_checkpoint(self.run.last)
        require_same_data(last.data, self.identity, what=f"the run {self.run.path}")
        self._require_same_recipe(Recipe.from_dict(last.recipe, where=str(self.run.last)))
        if last.teacher != self.teacher_identity:
            raise ToolkitError(
                f"{self.run.teacher} is not the teacher that the run began with: put that one back, or start a new run"
            )
        if last.training is None:
            raise ToolkitError(f"{self.run.last} holds no state of the optimiser to go on from")
        self._take_state(last.weights, last.training)
        if self.run.best.is_file():
            best = load_checkpoint(self.run.best)
            self.best_epoch = best.epoch
            self.best_val_accuracy = -math.inf if best.val_accuracy is None else best.val_accuracy
        self.run.keep_metrics(last.epoch)
        self.run.remove_leftovers()
        if (began_in := last.training.get("precision", self.precision)) != self.precision:
            self.note(f"the run began in {began_in} and goes on in {self.precision}: not exactly as it would have")
        return last.epoch

    def _take_state(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Raises `ToolkitError` where the state is not one of this network and this optimiser."""
        try:
            self.network.load_state_dict(training.get("weights", weights))
            if self.average is not None:
                if (steps := int(training["averaged_steps"])) < 0:
                    raise ValueError(f"{steps} averaged steps")
                self.average.load(weights, steps=steps)
            self.optimizer.load_state_dict(training["optimizer"])
            self.seconds = float(training["seconds"])
            for parameter, state in self.optimizer.state.items():
                for value in state.values():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{tuple(value.shape)} for a weight of {tuple(parameter.shape)}")
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ToolkitError(f"{self.run.last} holds no state to go on from: {error!r:.300}") from error

    def _require_same_recipe(self, began_with: Recipe) -> None:
        """A run that changes its recipe on the way would report validation images that it was trained on, or worse."""
        if began_with != self.recipe:
            raise ToolkitError(
                f"the recipe.toml of {self.run.path} is no longer the recipe that the run began with, which stands in "
                f"{self.run.last.name}: undo the change, or start a new run with `cifar train --recipe FILE`"
            )

    def patience_is_over(self, epochs_done: int) -> bool:
        patience = self.recipe.early_stopping
        return bool(patience) and epochs_done - self.best_epoch >= patience

    def train_epoch(self, epoch: int, progress: Progress | None) -> EpochRecord:
        start, processor_start = time.perf_counter(), time.process_time()
        self._seed(epoch)
        rate = self._steps_of(epoch, progress)
        loss, right = self.step.take_sums()
        step_seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        self._note_crowded_cores(step_seconds, processor_seconds)
        if not math.isfinite(loss):
            raise ToolkitError(
                f"the loss of epoch {epoch} is not finite, so training stopped; {self.run.last} holds the "
                f"epoch before. Try a learning rate below {self.recipe.learning_rate} or a warm-up"
            )
        validation = self._measure(self.val_images, self.dtype)
        images = len(self.train_images)
        seconds = time.perf_counter() - start
        record = EpochRecord(
            epoch=epoch,
            learning_rate=rate,
            train_loss=loss / images,
            train_accuracy=right / images,
            val_loss=validation.loss if validation else None,
            val_accuracy=validation.accuracy if validation else None,
            seconds=seconds,
            images_per_second=images / step_seconds,
        )
        self.seconds += seconds
        self._save(record)
        return record

    def _note_crowded_cores(self, seconds: float, processor_seconds: float) -> None:
        """Once a run: results do not depend on it."""
        threads = torch.get_num_threads()
        text = note_on_crowded_cores(self.device, threads=threads, seconds=seconds, processor_seconds=processor_seconds)
        if text and not self.told_of_crowd:
            self.told_of_crowd = True
            self.note(text)

    def _seed(self, epoch: int) -> None:
        torch.manual_seed((self.recipe.run.seed << 20) + epoch)  # epoch 0: the initial weights

    def _steps_of(self, epoch: int, progress: Progress | None) -> float:
        """All steps of one epoch; returns the last learning rate. Each image is seen once, in a random order."""
        images = len(self.train_images)
        crop_size = crop_size_of(self.recipe, epoch)
        order = torch.randperm(images, device=self.device)
        rate, done = 0.0, 0
        for indices in order.split(self.recipe.batch_size):
            rate = learning_rate(self.recipe, epoch - 1 + done / images)
            self.step(indices, rate, crop_size=crop_size)
            done += len(indices)
            if progress is not None:
                progress(done, images)
        return rate

    def _save(self, record: EpochRecord) -> None:
        """Metrics, then the best, then the last checkpoint: a crash in between repeats the epoch, and loses nothing."""
        self.run.append_metrics(dataclasses.asdict(record))
        if record.val_accuracy is None or record.val_accuracy > self.best_val_accuracy:
            self.best_epoch = record.epoch
            self.best_val_accuracy = -math.inf if record.val_accuracy is None else record.val_accuracy
            save_checkpoint(self._checkpoint(record.epoch, record.val_accuracy), self.run.best)
        save_checkpoint(self._checkpoint(record.epoch, record.val_accuracy, with_training=True), self.run.last)

    def _checkpoint(self, epoch: int, val_accuracy: float | None, *, with_training: bool = False) -> Checkpoint:
        training = None
        if with_training:
            training = {"optimizer": self.optimizer.state_dict(), "seconds": self.seconds, "precision": self.precision}
            if self.average is not None:
                training |= {"weights": _plain_weights(self.network), "averaged_steps": self.average.steps}
        return Checkpoint(
            model=self.recipe.run.model,
            model_args=self.model_args,
            class_names=self.class_names,
            recipe=self.recipe.as_dict(),
            data=self.identity,
            epoch=epoch,
            val_accuracy=val_accuracy,
            weights=_plain_weights(self.result),
            training=training,
            teacher=self.teacher_identity,
        )

    def _measure(self, images: Images, dtype: torch.dtype) -> Metrics | None:
        if len(images) == 0:
            return None
        return measure(compute_logits(self.result, images.images, dtype=dtype), images.labels, self.class_names)

    def finish(self) -> None:
        """Measure the last and the best weights in float32, draw the pictures, write the summary."""
        records = self.run.read_metrics()
        train_metrics = self._measure(self.train_images, torch.float32)
        last_validation = self._measure(self.val_images, torch.float32)
        best = load_checkpoint(self.run.best)
        self.result.load_state_dict(best.weights)
        best_validation = self._measure(self.val_images, torch.float32)
        assert train_metrics is not None  # there are always training images
        title = f"{self.recipe.run.model}, seed {self.recipe.run.seed}"
        if records:  # unless somebody removed them
            plot_curves(records, self.run.path / "curves.png", title=title)
        if best_validation is not None:
            plot_confusion(best_validation, self.run.path / "confusion.png", title=f"{title}: validation")
        gap = train_metrics.accuracy - last_validation.accuracy if last_validation else None
        self.run.write_summary(
            {
                "model": self.recipe.run.model,
                "parameters": sum(p.numel() for p in self.network.parameters()),
                "seed": self.recipe.run.seed,
                "epochs": load_checkpoint(self.run.last).epoch,
                "train_images": len(self.train_images),
                "val_images": len(self.val_images),
                "best": {"epoch": best.epoch, "validation": best_validation.as_dict() if best_validation else None},
                "last": {
                    "train_accuracy": train_metrics.accuracy,
                    "train_loss": train_metrics.loss,
                    "val_accuracy": last_validation.accuracy if last_validation else None,
                    "val_loss": last_validation.loss if last_validation else None,
                    "generalisation_gap": gap,
                },
                "training_seconds": self.seconds,
                "device": device_name(self.device),
                "step": self.step.mode,
                "precision": self.precision,
                "data": self.identity,
                "teacher": self.teacher_identity,
                "libraries": library_versions(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )


def _kept_teacher(
    run: RunFolder, recipe: Recipe, source: DataSource, *, given: Checkpoint | None, resume: bool
) -> Checkpoint | None:
    """The teacher, of which the run keeps a copy before anything else: a run that goes on takes that copy."""
    if resume and recipe.distillation_weight > 0:
        if run.teacher.is_file():
            given = load_checkpoint(run.teacher)
        elif given is None:
            raise ToolkitError(
                f"{run.teacher} is missing, without which the run cannot go on: put the teacher's checkpoint back "
                "there, or start a new run"
            )
    require_fitting(given, recipe, source.class_names)
    if given is not None and not run.teacher.is_file():
        save_checkpoint(dataclasses.replace(given, training=None), run.teacher)
    return given


def library_versions() -> dict[str, str]:
    """What trained the network: the versions of this toolkit, Python and the libraries that decide the figures."""
    return {"cifar": __version__, "python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "numpy")
    }


def _plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """On the CPU and in the default layout, so that a checkpoint does not depend on where it was trained."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in network.state_dict().items()}
