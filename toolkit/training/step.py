"""One optimisation step: indices of a batch in, updated weights out; sums for the metrics stay on the device.

Eager, compiled or a captured CUDA graph behind one call; `toolkit.training.mode` chooses.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.data.cifar import normalised
from toolkit.recipes.recipe import Recipe
from toolkit.training.augment import crop_and_flip, mixup, random_erasing
from toolkit.training.averaging import WeightAverage
from toolkit.training.cuda_graph import CapturedStep, CudaGraphs, first_line
from toolkit.training.distillation import distillation_loss


class TrainingStep:
    """Augment a batch, run it forward and backward, update the weights; call it with the batch's indices.

    Args:
        network: in channels_last layout, on the device.
        optimizer: over the network's parameters.
        recipe: says how to augment.
        images: the padded training images (`augment.padded`), uint8 (N, S, S, 3), on the device.
        labels: int64 (N,), on the device.
        dtype: number format of the forward pass; the weights and the loss stay float32.
        teacher: what the network learns from by the recipe's distillation weight, in evaluation mode, on the device;
            None for none. It sees the very same augmented images.
        average: of the network's weights, moved on at each step; None for none.
        mode: "eager", "compiled", "graph" or "compiled-graph". Batches that are not full are always eager.
        note: told when compiling or capturing turns out to be impossible; the steps are then eager.

    Attributes:
        seconds_compiling: spent in the compiler so far.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        recipe: Recipe,
        images: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
        teacher: nn.Module | None = None,
        average: WeightAverage | None = None,
        mode: str = "eager",
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.recipe = recipe
        self.augmentation = recipe.data_augmentation
        self.images = images
        self.labels = labels
        self.dtype = dtype
        self.teacher = teacher
        self.average = average
        self.note = note
        self.seconds_compiling = 0.0
        self._sums = torch.zeros(2, device=labels.device)  # loss times images, and right answers
        self._rate = torch.zeros((), device=labels.device)
        self._batch_size = recipe.batch_size
        networks = [network] if teacher is None else [network, teacher]
        self._compiled = {each: torch.compile(each, dynamic=False) for each in networks} if "compiled" in mode else {}
        self._compiled_crops: set[int] = set()
        self._captured = self._capturing(recipe.batch_size) if "graph" in mode else None

    @property
    def mode(self) -> str:
        """The kind of step that full batches really take, so far as has been tried: as `mode` was, or less."""
        captured = self._captured is not None and self._captured.can_record
        if self._compiled:
            return "compiled-graph" if captured else "compiled"
        return "graph" if captured else "eager"

    def __call__(self, indices: Tensor, learning_rate: float, *, crop_size: int = 32) -> None:
        """Train on the images at `indices`, int64 (B,), cropped to `crop_size` pixels a side."""
        self._rate.fill_(learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate  # again each time: an optimiser's state that is loaded brings its own, on the CPU
        if self.average is not None:
            self.average.next_step()
        if self._compiled and len(indices) == self._batch_size and crop_size not in self._compiled_crops:
            self._elsewhere(lambda: self._compile(crop_size))
        if self._captured is not None:
            self._captured(indices, crop_size)
        else:
            self._update(indices, crop_size)

    def _update(self, indices: Tensor, crop_size: int) -> None:
        """The step itself. Nothing here waits for the device or depends on what it computed, so it can be captured."""
        windows = crop_and_flip(
            self.images,
            indices,
            size=crop_size,
            random_crop=self.augmentation.random_crop,
            horizontal_flip=self.augmentation.horizontal_flip,
        )
        images, labels = normalised(windows), self.labels[indices]
        partners, weight = labels, torch.ones((), device=labels.device)
        if self.augmentation.random_erasing > 0:
            images = random_erasing(images, self.augmentation.random_erasing)
        if self.augmentation.mixup_alpha > 0:
            images, partners, weight = mixup(images, labels, self.augmentation.mixup_alpha)
        logits = self._logits(self.network, images)
        loss = self._loss(logits, labels, partners, weight)
        if self.teacher is not None:
            share, temperature = self.recipe.distillation_weight, self.recipe.distillation_temperature
            taught = distillation_loss(logits, self._teacher_logits(self.teacher, images), temperature)
            loss = (1 - share) * loss + share * taught
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self._count(loss.detach(), logits.detach(), labels, partners, weight)

    def _loss(self, logits: Tensor, labels: Tensor, partners: Tensor, weight: Tensor) -> Tensor:
        """Cross entropy with the labels, and under mixup with the partners' by their share."""
        smoothing = self.recipe.label_smoothing
        loss = weight * F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if partners is not labels:
            loss = loss + (1 - weight) * F.cross_entropy(logits, partners, label_smoothing=smoothing)
        return loss

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Float32 (B, K), by the compiled network where this shape was compiled."""
        full = len(images) == self._batch_size
        forward = self._compiled[network] if full and images.shape[-1] in self._compiled_crops else network
        # A step uses each weight once, so autocast has no use for copies; and a captured graph must not refer to any.
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            logits: Tensor = forward(images)
        return logits.float()

    @torch.no_grad()
    def _teacher_logits(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """Likewise, of the network that is not trained."""
        return self._logits(teacher, images)

    def _compile(self, crop_size: int) -> None:
        """Compile forward and backward for this crop size on a batch of zeros, which leaves no trace in the run."""
        start = time.perf_counter()
        device = self.labels.device
        buffers = [buffer.clone() for buffer in self.network.buffers()]  # BatchNorm's, which even a forward pass moves
        zeros = torch.zeros(self._batch_size, 3, crop_size, crop_size, device=device)
        zeros = zeros.contiguous(memory_format=torch.channels_last)
        self._compiled_crops.add(crop_size)
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._logits(self.network, zeros).sum().backward()
                if self.teacher is not None:
                    self._teacher_logits(self.teacher, zeros)
        except Exception as error:  # any compiler may fail in any way; without it the run is slower, and no less right
            self._compiled, self._compiled_crops = {}, set()
            self.note(f"the steps are not compiled: the compiler failed ({type(error).__name__}: {first_line(error)})")
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self.seconds_compiling += time.perf_counter() - start

    def _elsewhere(self, work: Callable[[], None]) -> None:
        """Do it on the stream of the captured steps, if there are any: autograd may remember where it first ran."""
        self._captured.recorder.run(work) if self._captured is not None else work()

    def _capturing(self, batch_size: int) -> CapturedStep:
        device = self.labels.device
        return CapturedStep(
            self._update,
            batch_size=batch_size,
            recorder=CudaGraphs(device),
            device=device,
            before_recording=lambda: self.optimizer.zero_grad(set_to_none=True),  # gradients then lie in the graph
            note=self.note,
        )

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor, partners: Tensor, weight: Tensor) -> None:
        """Add the batch to the sums; under mixup a label is right by its share in the image."""
        predicted = logits.argmax(1)
        right = weight * (predicted == labels).sum() + (1 - weight) * (predicted == partners).sum()
        self._sums += torch.stack([loss * len(labels), right])

    def take_sums(self) -> tuple[float, float]:
        """Sums since the last call, over images: of the loss, and of right answers. Waits for the device."""
        loss, right = self._sums.tolist()
        self._sums.zero_()
        return loss, right
