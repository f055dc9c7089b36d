"""The accuracy of a model on a test set: required accuracy, confidence interval, macro accuracy."""

import math

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError

# CIFAR-10: 9,100 of the 10,000 test images. The synthetic pictures (demo) are easier.
DEFAULT_MIN_ACCURACY = {"cifar10": 0.91, "demo": 0.91}

_Z = 1.959963984540054  # of the normal distribution, two-sided 95%


def choose_min_accuracy(min_accuracy: float | None, *, data: str, val_accuracy: float | None) -> float:
    """Return the required accuracy in (0, 1]: `min_accuracy` if given, else the default of the data set.

    Args:
        min_accuracy: the user's choice; None for the default of the data set.
        data: name of the data set.
        val_accuracy: of the model, in [0, 1], for the message; None if it is not known.

    Raises:
        UsageError: `min_accuracy` is None, and the data set has no default.
    """
    if min_accuracy is not None:
        return min_accuracy
    if data in DEFAULT_MIN_ACCURACY:
        return DEFAULT_MIN_ACCURACY[data]
    known = "" if val_accuracy is None else f"; the validation accuracy of this model is {val_accuracy:.4f}"
    raise UsageError(
        f"{data} has no default for the required accuracy{known}: give --min-accuracy, such as --min-accuracy 0.8"
    )


def compute_wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the 95% confidence interval of an accuracy, in [0, 1]; `images` must be at least 1.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927). Unlike the
    normal interval it stays inside [0, 1] and does not shrink to a point where all or none are correct.
    """
    share, weight = correct / images, _Z**2 / images
    center = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, center - half), min(1.0, center + half)


def macro_accuracy(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Mean of the accuracies of the classes that have images, in [0, 1].

    Args:
        right: bool (N,), whether each image is classified correctly; N at least 1.
        labels: int64 (N,).
    """
    images, correct = np.bincount(labels), np.bincount(labels, weights=right)
    return float((correct[images > 0] / images[images > 0]).mean())
