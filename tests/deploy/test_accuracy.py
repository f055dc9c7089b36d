"""The required accuracy of a data set, the interval of a measured one, and the mean over classes."""

import numpy as np
import pytest

from toolkit.deploy.accuracy import choose_min_accuracy, compute_wilson_interval, macro_accuracy
from toolkit.errors import UsageError


def test_floors():
    assert choose_min_accuracy(None, data="cifar10", val_accuracy=None) == 0.91
    assert choose_min_accuracy(0.5, data="pictures", val_accuracy=None) == 0.5
    with pytest.raises(UsageError, match="the validation accuracy of this model is 0.8125: give --min-accuracy"):
        choose_min_accuracy(None, data="pictures", val_accuracy=0.8125)
    with pytest.raises(UsageError, match="cifar100 has no default for the required accuracy: give"):
        choose_min_accuracy(None, data="cifar100", val_accuracy=None)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(50, 50, 0.9287, 1.0), (0, 50, 0.0, 0.0713), (81, 263, 0.2553, 0.3662), (9230, 10_000, 0.9176, 0.9281)],
)
def test_wilson_interval(correct, images, low, high):
    """The third row is Newcombe's example, Statistics in Medicine 17 (1998), table I: 0.2553 to 0.3662."""
    assert compute_wilson_interval(correct, images) == pytest.approx((low, high), abs=6e-5)


def test_macro_accuracy_counts_every_class_with_images_once():
    """Class 0: 8 of 8; class 1: 0 of 2; class 2: no images; class 3: 1 of 2."""
    labels = np.array([0] * 8 + [1] * 2 + [3] * 2)
    right = np.array([True] * 8 + [False] * 2 + [True, False])
    assert macro_accuracy(right, labels) == 0.5
