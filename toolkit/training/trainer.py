"""The training loop: `train` runs the epochs, keeps the best and the last checkpoint on disk, and writes a summary.

All randomness of an epoch depends only on the seed and the epoch number. A run can therefore be resumed after any epoch
without saved generator states, and gives bit-identical weights on the same machine, with the same number of threads.
"""

import dataclasses
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from models import ResNet, build_model
from toolkit import __version__
from toolkit.cores import waiting_seconds
from toolkit.data.channels import choose_channel_statistics
from toolkit.data.dataset import DataSource, identify_data, require_same_data
from toolkit.data.images import Images
from toolkit.data.split import split_images
from toolkit.device import (
    choose_device,
    choose_dtype,
    describe_busy_cores,
    device_name,
    enable_cudnn_benchmark,
    keep_freed_memory,
    limit_threads,
)
from toolkit.errors import ToolkitError
from toolkit.evaluation.metrics import Metrics, compute_logits, measure
from toolkit.evaluation.plots import plot_confusion, plot_curves
from toolkit.files import shorten
from toolkit.recipes.recipe import Recipe
from toolkit.recipes.schedule import choose_crop_size, learning_rate
from toolkit.reporting import Note, Progress, ignore
from toolkit.runs.checkpoint import Checkpoint, identify_checkpoint, load_checkpoint, save_checkpoint
from toolkit.runs.folder import RunFolder
from toolkit.training.augment import pad
from toolkit.training.distillation import Teacher, require_fitting_teacher
from toolkit.training.initialize import load_fitting_layers, require_unseen_validation
from toolkit.training.optimizers import make_optimizer
from toolkit.training.step import StepMode, TrainingStep, choose_mode

_DEVICE_OPTIONS = {"capturable", "fused"}  # optimizer options that depend on the device: not taken from a checkpoint


@dataclass(frozen=True)
class EpochRecord:
    """Measurements of one epoch: a line of `metrics.jsonl`.

    Attributes:
        epoch: counted from 1.
        learning_rate: of the last step of the epoch.
        train_loss: mean over the augmented images, each with the weights at its step, distillation included; nats.
        train_accuracy: as `train_loss`, in [0, 1]; under mixup a prediction counts by the weight of its label.
        val_loss: after the epoch, without augmentation; None without validation images.
        val_accuracy: as `val_loss`, in [0, 1].
        seconds: wall time of the epoch, validation included.
        images_per_second: training images divided by the wall time of the steps alone.
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
    mode: StepMode = "auto",
    on_epoch: Callable[[EpochRecord], object] = ignore,
    on_progress: Progress = ignore,
    note: Note = ignore,
) -> dict[str, Any]:
    """Train by `recipe` to the end, write the files of the run folder, and return the summary.

    The run starts from the weights in the folder's `init.pt` where there is one, and distills from the network in its
    `teacher.pt` if the recipe has a `distillation_weight` (`create_run` writes both). Validation images are the data
    set's own, or held out of its training images by the recipe's `val_size`.

    `last.pt` exists before the first step and is replaced after each epoch. `best.pt` holds the epoch with the highest
    validation accuracy, or the last epoch without validation images.
    `summary.json` is written last: it marks the run as finished.

    Reseeds torch's default generators at the start of each epoch. An exception from a callback ends the run, which
    can then be resumed from its last completed epoch.

    Args:
        recipe: of a new run; when resuming, the recipe of the run folder.
        source: the data set; its test images are not used.
        run: from `create_run`; when resuming, from `open_run`.
        device: "auto", or a torch device.
        resume: continue after the last completed epoch on disk.
        mode: "eager", "graph" (steps captured as CUDA graphs), or "auto" for graphs on CUDA.
        on_epoch: called after each epoch, when its checkpoints have been written.
        on_progress: called after each step with the images done in this epoch, and the images of an epoch.
        note: called with remarks, such as a fallback to eager steps.

    Returns:
        The contents of `summary.json`.

    Raises:
        ToolkitError: the loss is not finite; data, recipe, initial weights or teacher are not those of the resumed run;
            initial weights or teacher do not fit; another process trains in this folder; a file cannot be read or
            written.
        UsageError: the device or the mode cannot be used; the data cannot be split; a distillation weight without a
            teacher, or the reverse.
    """
    keep_freed_memory()
    limit_threads()
    with run.lock():
        trainer = _Trainer(
            recipe,
            source=source,
            run=run,
            device=choose_device(device),
            init=load_checkpoint(run.init) if os.path.lexists(run.init) else None,
            teacher=load_checkpoint(run.teacher) if os.path.lexists(run.teacher) else None,
            mode=mode,
            note=note,
        )
        if resume:
            trainer.resume()
        else:
            trainer.begin()
        for epoch in range(trainer.epoch + 1, recipe.epochs + 1):
            if trainer.should_stop_early(epoch - 1):
                break
            on_epoch(trainer.train_epoch(epoch, on_progress))
        return trainer.finish()


@dataclass(frozen=True)
class _FinalMetrics:
    """Metrics of a finished run in float32: of the last weights, and of the best epoch's on the validation images."""

    train: Metrics
    last_validation: Metrics | None
    best_validation: Metrics | None
    best_epoch: int


class _Trainer:
    """The state of a run between two epochs: data, network, optimizer, and the best epoch so far."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        source: DataSource,
        run: RunFolder,
        device: torch.device,
        init: Checkpoint | None,
        teacher: Checkpoint | None,
        mode: StepMode,
        note: Note,
    ) -> None:
        self.recipe, self.run, self.device, self.note = recipe, run, device, note
        self.dtype = choose_dtype(recipe.run.precision, device)
        self.precision = str(self.dtype).removeprefix("torch.")
        images = source.train()
        self.identity = identify_data(source.name, images)
        self.init_identity = identify_checkpoint(init) if init else None
        self.teacher_identity = identify_checkpoint(teacher) if teacher else None
        self.class_names, self.findings = source.class_names, source.findings()
        own_val = source.val()
        if own_val is not None:
            self.train_images, self.val_images = images, own_val
        else:
            self.train_images, self.val_images = split_images(images, recipe.run.val_size)
        # Initial weights keep their own statistics:
        self.statistics = init.statistics if init else choose_channel_statistics(source.name, self.train_images.images)
        self.model_args: dict[str, Any] = {"num_classes": len(self.class_names), "dropout_rate": recipe.dropout_rate}
        enable_cudnn_benchmark(device)
        self._seed_epoch(0)  # for the initial weights
        self.network: ResNet = build_model(recipe.run.model, **self.model_args)
        self.init_note = ""
        if init is not None:
            if own_val is None:
                require_unseen_validation(init, recipe, self.identity)
            self.init_note = load_fitting_layers(self.network, init, self.class_names).describe(init)
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, recipe)
        padded = pad(self.train_images.images, recipe.data_augmentation.crop_padding).to(device)
        require_fitting_teacher(teacher, recipe, self.class_names, self.identity, own_val=own_val is not None)
        self.teacher = Teacher(teacher, recipe=recipe, images=padded, dtype=self.dtype) if teacher else None
        self.step = TrainingStep(
            self.network,
            self.optimizer,
            recipe=recipe,
            images=padded,
            labels=self.train_images.labels.to(device),
            statistics=self.statistics,
            dtype=self.dtype,
            mode=choose_mode(mode, device),
            note=note,
        )
        self.epoch, self.best_epoch, self.best_val_accuracy = 0, 0, -math.inf
        self.noted_busy_cores = False
        self.seconds = 0.0  # over all epochs, and over all processes that trained them

    def begin(self) -> None:
        """Write the initial network to disk, so that a run can be resumed before its first epoch is complete."""
        if self.init_note:
            self.note(self.init_note)
        if self.teacher_identity:
            model = self.teacher_identity["model"]
            self.note(f"Distillation from {model}: an epoch that first uses a view takes longer, to compute its logits")
        if self.recipe.batch_size > len(self.train_images):
            self.note(
                f"batch_size {self.recipe.batch_size} exceeds the {len(self.train_images):,} training images: "
                "each epoch is one step"
            )
        save_checkpoint(self._checkpoint(0, None, with_training=True), self.run.last)
        self.run.truncate_metrics(0)  # `last.pt` may have been removed after an epoch

    def resume(self) -> None:
        """Load the state after the last completed epoch from disk."""
        if not os.path.lexists(self.run.last):  # stopped before there was anything to save
            self.begin()
            return
        last = load_checkpoint(self.run.last)
        require_same_data(last.data, self.identity, what=f"the run {self.run.path}")
        self._require_same_recipe(Recipe.from_dict(last.recipe, where=str(self.run.last)))
        if last.init != self.init_identity:
            raise ToolkitError(
                f"{self.run.init} does not hold the weights that the run began with: restore that file, or start a new "
                "run"
            )
        if last.teacher != self.teacher_identity:
            raise ToolkitError(
                f"{self.run.teacher} does not hold the teacher that the run began with: restore that file, or start a "
                "new run"
            )
        if last.training is None:
            raise ToolkitError(f"{self.run.last} holds no optimizer state, so the run cannot be resumed from it")
        self._load_state(last.weights, last.training)
        if self.run.best.is_file():
            best = load_checkpoint(self.run.best)
            self.best_epoch = best.epoch
            self.best_val_accuracy = -math.inf if best.val_accuracy is None else best.val_accuracy
        self.run.truncate_metrics(last.epoch)
        self.run.remove_leftovers()
        if (began_in := last.training.get("precision", self.precision)) != self.precision:
            self.note(
                f"the last epoch was trained in {shorten(str(began_in))}, and the run resumes in {self.precision}: its "
                "weights will differ from those of an uninterrupted run"
            )
        self.epoch = last.epoch

    def _load_state(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Load weights and optimizer state. Raises `ToolkitError` if they do not fit."""
        try:
            self.network.load_state_dict(weights)
            own = [
                {name: group[name] for name in _DEVICE_OPTIONS & group.keys()} for group in self.optimizer.param_groups
            ]
            self.optimizer.load_state_dict(training["optimizer"])
            for group, options in zip(self.optimizer.param_groups, own, strict=True):
                group.update(options)
            self.seconds = float(training["seconds"])
            for parameter, state in self.optimizer.state.items():
                for value in state.values():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{tuple(value.shape)} for a weight of {tuple(parameter.shape)}")
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ToolkitError(f"the run cannot be resumed from {self.run.last}: {error!r:.300}") from error

    def _require_same_recipe(self, began_with: Recipe) -> None:
        """Raise `ToolkitError` if recipe.toml was edited: the run might validate on images that it was trained on."""
        if began_with != self.recipe:
            raise ToolkitError(
                f"{self.run.path}/recipe.toml differs from the recipe in {self.run.last.name}: undo the change, or "
                "start a new run with `cifar train --recipe FILE`"
            )

    def should_stop_early(self, epochs_done: int) -> bool:
        patience = self.recipe.early_stopping
        return bool(patience) and epochs_done - self.best_epoch >= patience

    def train_epoch(self, epoch: int, on_progress: Progress) -> EpochRecord:
        """Train and validate one epoch, and write metrics and checkpoints."""
        start = time.perf_counter()
        if self.teacher is not None:
            self.step.set_view(self.teacher.view(epoch, choose_crop_size(self.recipe, epoch)))
        step_start, waiting_start = time.perf_counter(), waiting_seconds()
        self._seed_epoch(epoch)
        rate = self._run_steps(epoch, on_progress)
        loss, correct = self.step.take_sums()
        step_seconds = time.perf_counter() - step_start
        self._note_busy_cores(step_seconds, waiting_seconds() - waiting_start)
        if not math.isfinite(loss):
            raise ToolkitError(
                f"the loss of epoch {epoch} is not finite, so training stopped; {self.run.last} holds the epoch before "
                f"it. Try a learning rate below {self.recipe.learning_rate} or a warm-up"
            )
        validation = self._measure(self.val_images, self.dtype)
        images = len(self.train_images)
        seconds = time.perf_counter() - start
        record = EpochRecord(
            epoch=epoch,
            learning_rate=rate,
            train_loss=loss / images,
            train_accuracy=correct / images,
            val_loss=validation.loss if validation else None,
            val_accuracy=validation.accuracy if validation else None,
            seconds=seconds,
            images_per_second=images / step_seconds,
        )
        self.seconds += seconds
        self.epoch = epoch
        self._save(record)
        return record

    def _note_busy_cores(self, seconds: float, waiting: float) -> None:
        """Once per run, note that other programs slow the training down."""
        if self.noted_busy_cores:
            return
        threads = torch.get_num_threads()
        text = describe_busy_cores(self.device, threads=threads, seconds=seconds, waiting_seconds=waiting)
        if text:
            self.noted_busy_cores = True
            self.note(text)

    def _seed_epoch(self, epoch: int) -> None:
        torch.manual_seed((self.recipe.run.seed << 20) + epoch)

    def _run_steps(self, epoch: int, on_progress: Progress) -> float:
        """Train on each image once, in random order; return the last learning rate."""
        images = len(self.train_images)
        crop_size = choose_crop_size(self.recipe, epoch)
        order = torch.randperm(images, device=self.device)
        rate, done = 0.0, 0
        for indices in order.split(self.recipe.batch_size):
            rate = learning_rate(self.recipe, epoch - 1 + done / images)
            self.step(indices, rate, crop_size=crop_size)
            done += len(indices)
            on_progress(done, images)
        return rate

    def _save(self, record: EpochRecord) -> None:
        """Write metrics, best and last checkpoint in this order: after a crash in between, the epoch is repeated."""
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
        return Checkpoint(
            model=self.recipe.run.model,
            model_args=self.model_args,
            class_names=self.class_names,
            recipe=self.recipe.as_dict(),
            data=self.identity,
            epoch=epoch,
            val_accuracy=val_accuracy,
            weights=_plain_weights(self.network),
            training=training,
            init=self.init_identity,
            teacher=self.teacher_identity,
            statistics=self.statistics,
        )

    def _measure(self, images: Images, dtype: torch.dtype) -> Metrics | None:
        if len(images) == 0:
            return None
        logits = compute_logits(self.network, images.images, statistics=self.statistics, dtype=dtype)
        return measure(logits, images.labels, self.class_names)

    def finish(self) -> dict[str, Any]:
        """Measure the last and the best weights in float32, plot and summarize the run; return the summary."""
        metrics = self._measure_last_and_best()
        self._plot(metrics)
        summary = self._summarize(metrics)
        self.run.write_summary(summary)
        return summary

    def _measure_last_and_best(self) -> _FinalMetrics:
        """Measure the current weights, then load those of the best epoch and measure them."""
        train = self._measure(self.train_images, torch.float32)
        assert train is not None  # there are always training images
        last_validation = self._measure(self.val_images, torch.float32)
        best = load_checkpoint(self.run.best)
        self.network.load_state_dict(best.weights)
        best_validation = self._measure(self.val_images, torch.float32)
        return _FinalMetrics(train, last_validation, best_validation, best.epoch)

    def _plot(self, metrics: _FinalMetrics) -> None:
        """Plot the curves of all epochs and the confusion matrix of the best one."""
        settings = self.recipe.run
        title = f"{settings.model} on {self.identity['name']}, {self.epoch} epochs, seed {settings.seed}"
        keys = {field.name for field in dataclasses.fields(EpochRecord)}
        records = [record for record in self.run.read_metrics() if record.keys() >= keys]  # the file may be edited
        if records:  # the file may have been removed
            plot_curves(records, self.run.path / "curves.png", title=title)
        if metrics.best_validation is not None:
            plot_confusion(metrics.best_validation, self.run.path / "confusion.png", title=f"{title}: validation")

    def _summarize(self, metrics: _FinalMetrics) -> dict[str, Any]:
        """Build the contents of `summary.json`."""
        train, last, best = metrics.train, metrics.last_validation, metrics.best_validation
        return {
            "model": self.recipe.run.model,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "seed": self.recipe.run.seed,
            "epochs": self.epoch,
            "train_images": len(self.train_images),
            "val_images": len(self.val_images),
            "best": {"epoch": metrics.best_epoch, "validation": best.as_dict() if best else None},
            "last": {
                "train_accuracy": train.accuracy,
                "train_loss": train.loss,
                "val_accuracy": last.accuracy if last else None,
                "val_macro_accuracy": last.macro_accuracy if last else None,
                "val_loss": last.loss if last else None,
                "generalisation_gap": train.accuracy - last.accuracy if last else None,
            },
            "training_seconds": self.seconds,
            "device": device_name(self.device),
            "step": self.step.mode,
            "precision": self.precision,
            "data": self.identity,
            "findings": self.findings.as_dict(),
            "channels": dataclasses.asdict(self.statistics),
            "init": self.init_identity,
            "teacher": self.teacher_identity,
            "libraries": library_versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def library_versions() -> dict[str, str]:
    """Versions of this toolkit, of Python and of the libraries that influence the results."""
    return {"cifar": __version__, "python": platform.python_version()} | {
        name: version(name) for name in ("torch", "torchvision", "numpy")
    }


def _plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """Copy the state dict to the CPU, in the default layout: the same checkpoint on every device."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in network.state_dict().items()}
