"""The drawn data set: the form of CIFAR-10, balanced, repeatable, and not separable by single pixels."""

import pytest
import torch

from toolkit.data.synthetic import DRAWN_CLASSES, TEST_SEED, TRAIN_SEED, draw


@pytest.mark.parametrize("count", [1, 10, 37])
def test_has_the_form_of_cifar10(count: int) -> None:
    images, labels = draw(count, seed=0)
    assert images.shape == (count, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert torch.bincount(labels, minlength=10).max() == -(-count // 10)


def test_ten_balanced_classes() -> None:
    assert len(DRAWN_CLASSES) == 10
    assert draw(200, seed=3)[1].bincount().tolist() == [20] * 10


def test_the_seed_alone_determines_the_images() -> None:
    images, labels = draw(50, seed=4)
    torch.manual_seed(0)
    same_images, same_labels = draw(50, seed=4)
    other_images, _ = draw(50, seed=5)
    assert torch.equal(images, same_images)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, other_images)


def test_training_and_test_pictures_differ() -> None:
    train, _ = draw(200, seed=TRAIN_SEED)
    test, _ = draw(200, seed=TEST_SEED)
    assert len(torch.unique(torch.cat([train, test]).flatten(1), dim=0)) == 400


def test_class_means_classify_poorly() -> None:
    """The nearest class mean is right for fewer than 30% of held-out images, where chance is 10%."""
    images, labels = draw(1_000, seed=6)
    pixels = images.flatten(1).float()
    means = torch.stack([pixels[:500][labels[:500] == label].mean(dim=0) for label in range(10)])
    nearest = torch.cdist(pixels[500:], means).argmin(dim=1)
    assert (nearest == labels[500:]).float().mean() < 0.3
