"""One training step: indices of a batch in, updated weights out; sums for the metrics stay on the device."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.data.channels import CIFAR10_STATISTICS, ChannelStatistics, normalize
from toolkit.errors import UsageError
from toolkit.recipes.recipe import Recipe
from toolkit.reporting import Note, ignore
from toolkit.training.augment import Windows, cut_windows, draw_windows, mixup
from toolkit.training.cuda_graph import CapturedStep, CudaGraphCapturer, GraphCapturer
from toolkit.training.distillation import View, distillation_loss
from toolkit.training.replay_check import ReplayCheck

StepMode = Literal["auto", "eager", "graph"]


def choose_mode(mode: StepMode, device: torch.device) -> StepMode:
    """Resolve "auto": captured steps on CUDA, eager steps elsewhere. Raises `UsageError` for graphs without CUDA."""
    if mode == "auto":
        return "graph" if device.type == "cuda" else "eager"
    if mode not in ("eager", "graph"):
        raise UsageError(f"the step must be one of auto, eager, graph, not {mode!r}")
    if mode == "graph" and device.type != "cuda":
        raise UsageError(f"only CUDA captures graphs: use --step eager or auto on {device.type}")
    return mode


class TrainingStep:
    """Augment a batch, run it forward and backward, update the weights. Called with the indices of the batch.

    Args:
        network: in channels_last layout, on the device.
        optimizer: from `make_optimizer`, over the network's parameters.
        recipe: augmentation, label smoothing, distillation, batch size and highest learning rate.
        images: the padded training images (`augment.pad`), uint8 (N, S, S, 3), on the device.
        labels: int64 (N,), on the device.
        statistics: channel means and standard deviations that normalize the images.
        dtype: number format of the forward pass; weights and loss stay float32.
        mode: "eager", or "graph" for steps captured as CUDA graphs. Batches that are not full are always eager.
        note: called with the reason if capturing turns out to be impossible; the steps are then eager.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        recipe: Recipe,
        images: Tensor,
        labels: Tensor,
        statistics: ChannelStatistics = CIFAR10_STATISTICS,
        dtype: torch.dtype,
        mode: StepMode = "eager",
        note: Note = ignore,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.recipe = recipe
        self.augmentation = recipe.data_augmentation
        self.images = images
        self.labels = labels
        self.statistics = statistics
        self.dtype = dtype
        self._view: View | None = None
        self._sums = torch.zeros(2, device=labels.device)  # loss times images, and correct predictions
        self._rates = [torch.zeros((), device=labels.device) for _ in optimizer.param_groups]
        self._captured = self._make_captured_step(CudaGraphCapturer(labels.device), note) if mode == "graph" else None

    @property
    def mode(self) -> StepMode:
        """The effective mode of full batches: "eager" if capturing was not requested or has failed, else "graph"."""
        return "graph" if self._captured is not None and self._captured.can_capture else "eager"

    def __call__(self, indices: Tensor, learning_rate: float, *, crop_size: int = 32) -> None:
        """Train on the images at `indices`, int64 (B,), cropped to `crop_size` pixels a side."""
        self._set_learning_rate(learning_rate)
        if self._captured is not None:
            self._captured(indices, crop_size)
        else:
            self._update(indices, crop_size)

    def set_view(self, view: View) -> None:
        """Train on this view of the images from now on, and learn its logits by the recipe's distillation weight."""
        if self._view is None:
            self._view = view.clone()
        else:
            self._view.copy_from(view)  # in place: captured steps read these tensors

    def _set_learning_rate(self, learning_rate: float) -> None:
        """Write the rate into the tensors that eager and captured steps read."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            rate.fill_(learning_rate * group["lr_scale"])
            group["lr"] = rate  # at each step, because a loaded optimizer state brings its own tensor, on the CPU

    def _update(self, indices: Tensor, crop_size: int) -> None:
        """Run one step on a batch, without synchronization with the device, so that it can be captured."""
        windows = self._windows(indices, crop_size)
        batch = cut_windows(self.images, indices, windows, size=crop_size)
        images, labels = normalize(batch, statistics=self.statistics), self.labels[indices]
        mixed_labels, label_weight = labels, torch.ones((), device=labels.device)
        if self.augmentation.mixup_alpha > 0:
            images, mixed_labels, label_weight = mixup(images, labels, self.augmentation.mixup_alpha)
        logits = self._logits(images)
        loss = self._loss(logits, labels, mixed_labels, label_weight)
        if self._view is not None:
            weight, teacher_logits = self.recipe.distillation_weight, self._view.logits[indices].float()
            loss = (1 - weight) * loss + weight * self._distillation_loss(logits, teacher_logits, label_weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._count(loss.detach(), logits.detach(), labels, mixed_labels, label_weight)

    def _windows(self, indices: Tensor, crop_size: int) -> Windows:
        """Those of the view, or new ones."""
        if self._view is not None:
            return self._view.windows.select(indices)
        return draw_windows(
            len(indices),
            room=self.images.shape[1] - crop_size,
            random_crop=self.augmentation.random_crop,
            horizontal_flip=self.augmentation.horizontal_flip,
            device=self.images.device,
        )

    def _distillation_loss(self, logits: Tensor, teacher_logits: Tensor, label_weight: Tensor) -> Tensor:
        """Compute the loss with the teacher's logits of both images of mixup, weighted as their labels. Float32 ()."""
        temperature = self.recipe.distillation_temperature
        loss = distillation_loss(logits, teacher_logits, temperature)
        if self.augmentation.mixup_alpha > 0:
            mixed_loss = distillation_loss(logits, teacher_logits.flip(0), temperature)
            loss = torch.lerp(mixed_loss, loss, label_weight)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor, mixed_labels: Tensor, label_weight: Tensor) -> Tensor:
        """Compute the cross entropy with both labels of each image, weighted by mixup's weight. Float32 ()."""
        smoothing = self.recipe.label_smoothing
        loss = label_weight * F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if mixed_labels is not labels:
            loss = loss + (1 - label_weight) * F.cross_entropy(logits, mixed_labels, label_smoothing=smoothing)
        return loss

    def _logits(self, images: Tensor) -> Tensor:
        """Float32 (B, K)."""
        # No cache of converted weights: a step uses each weight once, and a captured graph must not refer to the cache.
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            logits: Tensor = self.network(images)
        return logits.float()

    def _make_captured_step(self, capturer: GraphCapturer, note: Note) -> CapturedStep:
        scales = [group["lr_scale"] for group in self.optimizer.param_groups]
        highest = [self.recipe.learning_rate * scale for scale in scales]
        rates = list(zip(self._rates, highest, strict=True))
        check = ReplayCheck(tensors=self._state, sums=self._sums, learning_rates=rates, dtype=self.dtype)
        return CapturedStep(
            self._update,
            batch_size=self.recipe.batch_size,
            device=self.labels.device,
            capturer=capturer,
            check=check,
            before_capture=lambda: self.optimizer.zero_grad(set_to_none=True),  # gradients are then in the graph
            note=note,
        )

    def _state(self) -> list[Tensor]:
        """Every tensor that a step changes."""
        optimizer = (value for state in self.optimizer.state.values() for value in state.values())
        values = (*self.network.state_dict().values(), *optimizer, self._sums)
        return [value for value in values if isinstance(value, Tensor)]

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor, mixed_labels: Tensor, label_weight: Tensor) -> None:
        """Add the batch to the sums; with mixup, a prediction counts with the weight of the label that it matches."""
        predicted = logits.argmax(1)
        matches, mixed_matches = (predicted == labels).sum(), (predicted == mixed_labels).sum()
        correct = label_weight * matches + (1 - label_weight) * mixed_matches
        self._sums += torch.stack([loss * len(labels), correct])

    def take_sums(self) -> tuple[float, float]:
        """Return and reset the sums over images of the loss and of correct predictions. Waits for the device."""
        loss, correct = self._sums.tolist()
        self._sums.zero_()
        return loss, correct
