"""Metrics from logits and labels: accuracy, per-class accuracy, confusion matrix, loss and calibration."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.data.channels import CIFAR10_STATISTICS, ChannelStatistics, normalize

CALIBRATION_BINS = 15  # as in Guo et al., arXiv:1706.04599
TOP5_CLASSES = 20  # minimum number of classes for top-5 accuracy


@dataclass(frozen=True)
class Metrics:
    """Figures of one model on one set of images.

    Attributes:
        images: how many images.
        correct: how many of them are classified right.
        loss: mean cross-entropy, nats.
        calibration_error: expected calibration error in [0, 1]: the mean distance between confidence and accuracy
            over 15 equal bins of confidence, weighted by images (Guo et al., arXiv:1706.04599, section 2).
        confusion: confusion[i][j] images of class i were taken for class j.
        class_names: the classes in the order of the logits.
        top5_correct: images whose class is among the five with the largest logits; None below `TOP5_CLASSES` classes.
    """

    images: int
    correct: int
    loss: float
    calibration_error: float
    confusion: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    top5_correct: int | None = None

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.images

    @property
    def macro_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have images, in [0, 1]: every class counts the same."""
        values = [value for value in self.per_class_accuracy.values() if value is not None]
        return sum(values) / len(values)

    @property
    def top5_accuracy(self) -> float | None:
        """In [0, 1]; None below `TOP5_CLASSES` classes."""
        return None if self.top5_correct is None else self.top5_correct / self.images

    @property
    def per_class_accuracy(self) -> dict[str, float | None]:
        """In [0, 1] by class name; None for a class without images."""
        return {
            name: row[index] / sum(row) if sum(row) else None
            for index, (name, row) in enumerate(zip(self.class_names, self.confusion, strict=True))
        }

    def most_confused(self) -> list[tuple[str, str, int]]:
        """True class, predicted class and number of images of every wrong pair that occurs, most images first."""
        pairs = [
            (count, true, predicted)
            for true, row in enumerate(self.confusion)
            for predicted, count in enumerate(row)
            if true != predicted and count
        ]
        ranked = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))
        return [(self.class_names[true], self.class_names[predicted], count) for count, true, predicted in ranked]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "images": self.images,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "macro_accuracy": self.macro_accuracy,
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "per_class_accuracy": self.per_class_accuracy,
            "confusion": [list(row) for row in self.confusion],
        }


def measure(logits: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Metrics:
    """All figures from logits, float (N, K), and labels, int64 (N,), on the CPU. N is at least 1."""
    classes = len(class_names)
    confidence, predicted = logits.softmax(1).max(1)
    right = predicted == labels
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # (lower, upper] as in Guo
    distance = torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add_(
        0, bins, right.double() - confidence.double()
    )
    top5_correct = None
    if classes >= TOP5_CLASSES:
        top5_correct = int((logits.topk(5, dim=1).indices == labels[:, None]).sum())
    return Metrics(
        images=len(labels),
        correct=int(right.sum()),
        loss=float(F.cross_entropy(logits, labels)),
        calibration_error=float(distance.abs().sum() / len(labels)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        class_names=class_names,
        top5_correct=top5_correct,
    )


@torch.no_grad()
def compute_logits(
    network: nn.Module,
    images: Tensor,
    *,
    statistics: ChannelStatistics = CIFAR10_STATISTICS,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 500,
) -> Tensor:
    """The network's logits, float32 (N, K) on the CPU, for uint8 images (N, 3, 32, 32), in evaluation mode.

    The images are normalized by `statistics`. The network is left in the mode in which it came.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    logits = []
    for batch in images.split(batch_size):
        x = normalize(batch.to(device), statistics=statistics).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits.append(network(x).float())
    network.train(was_training)
    return torch.cat(logits).cpu()
