"""One optimisation step: indices of a batch in, updated weights out; sums for the metrics stay on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.training.augment import crop_and_flip, mixup, normalised
from toolkit.training.recipe import Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; weight decay acts on convolution and linear weights, not on biases or BatchNorm.

    The learning rate is a tensor, so that a step can change it without being compiled or captured anew.
    """
    decayed = [p for p in network.parameters() if p.ndim > 1]
    not_decayed = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    device = decayed[0].device
    learning_rate = torch.tensor(recipe.learning_rate, device=device)
    fused = device.type in ("cuda", "cpu")
    if recipe.optimizer == "Adam":
        return torch.optim.Adam(groups, lr=learning_rate, betas=(recipe.momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


class TrainingStep:
    """Augment a batch, run it forward and backward, update the weights; call it with the batch's indices.

    Args:
        network: in channels_last layout, on the device.
        optimizer: over the network's parameters.
        recipe: says how to augment.
        images: the padded training images (`augment.padded`), uint8 (N, S, S, 3), on the device.
        labels: int64 (N,), on the device.
        dtype: number format of the forward pass; the weights and the loss stay float32.
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
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.augmentation = recipe.data_augmentation
        self.images = images
        self.labels = labels
        self.dtype = dtype
        self._sums = torch.zeros(2, device=labels.device)  # loss and right answers, each times images

    def __call__(self, indices: Tensor, learning_rate: float, *, crop_size: int = 32) -> None:
        """Train on the images at `indices`, int64 (B,), cropped to `crop_size` pixels a side."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate)
        windows = crop_and_flip(
            self.images,
            indices,
            size=crop_size,
            random_crop=self.augmentation.random_crop,
            horizontal_flip=self.augmentation.horizontal_flip,
        )
        images, labels = normalised(windows), self.labels[indices]
        partners, weight = labels, torch.ones((), device=labels.device)
        if self.augmentation.mixup_alpha > 0:
            images, partners, weight = mixup(images, labels, self.augmentation.mixup_alpha)
        with torch.autocast(labels.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.network(images)
        logits = logits.float()
        loss = weight * F.cross_entropy(logits, labels)
        if partners is not labels:
            loss = loss + (1 - weight) * F.cross_entropy(logits, partners)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._count(loss.detach(), logits.detach(), labels, partners, weight)

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
