"""Augmentation of a batch, against a plain reference that treats one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from toolkit.data.channels import normalize
from toolkit.data.cifar import MEAN, STD
from toolkit.training.augment import cut_windows, draw_windows, mixup, pad


def random_images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def crop_and_flip(images, indices, *, size, **options):
    """Cut a new window out of each of the padded images."""
    windows = draw_windows(len(indices), room=images.shape[1] - size, device=images.device, **options)
    return cut_windows(images, indices, windows, size=size)


def windows_of(image: torch.Tensor, padding: int, size: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop that torchvision can make of one image, by its bytes."""
    bordered = tv.pad(image, [padding])
    room = 32 + 2 * padding - size
    found = {}
    for top in range(room + 1):
        for left in range(room + 1):
            window = tv.crop(bordered, top, left, size, size)
            for mirrored in (False, True):
                found[(tv.hflip(window) if mirrored else window).numpy().tobytes()] = (top, left, mirrored)
    return found


@pytest.mark.parametrize(("padding", "size"), [(4, 32), (2, 24), (0, 32)])
def test_each_window_is_one_that_torchvision_makes_and_all_occur(padding, size):
    image = random_images(1)
    known = windows_of(image[0], padding, size)
    torch.manual_seed(0)
    draws = 40 * len(known)
    batch = crop_and_flip(
        pad(image, padding),
        torch.zeros(draws, dtype=torch.int64),
        size=size,
        random_crop=True,
        horizontal_flip=True,
    )
    seen = [known[window.contiguous().numpy().tobytes()] for window in batch]  # a KeyError is a wrong window
    assert set(seen) == set(known.values())
    mirrored = sum(flip for _, _, flip in seen)
    assert abs(mirrored / draws - 0.5) < 4 * 0.5 / draws**0.5  # four standard deviations of a fair coin
    tops = np.bincount([top for top, _, _ in seen], minlength=32 + 2 * padding - size + 1)
    assert tops.min() > 0.7 * draws / len(tops)
    assert tops.max() < 1.3 * draws / len(tops)


def test_without_crop_and_flip_the_images_come_back():
    images = random_images(10)
    order = torch.tensor([3, 1, 4, 1, 5])
    batch = crop_and_flip(pad(images, 4), order, size=32, random_crop=False, horizontal_flip=False)
    assert torch.equal(batch, images[order])
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_offsets_and_flips_differ_within_a_batch():
    torch.manual_seed(0)
    image = random_images(1)
    same = torch.zeros(64, dtype=torch.int64)
    batch = crop_and_flip(pad(image, 4), same, size=32, random_crop=True, horizontal_flip=True)
    assert len({window.contiguous().numpy().tobytes() for window in batch}) > 30


def test_normalize_equals_torchvision():
    images = random_images(5)
    expected = torch.stack([tv.normalize(tv.to_tensor(i.permute(1, 2, 0).numpy()), MEAN, STD) for i in images])
    torch.testing.assert_close(normalize(images), expected)


def erased_rectangle(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Top, bottom, left and right of the one rectangle in which an image (3, H, W) was set to 0; None: untouched."""
    changed = (before != after).all(0)
    if not changed.any():
        assert torch.equal(before, after)
        return None
    rows, columns = changed.any(1).nonzero().flatten().tolist(), changed.any(0).nonzero().flatten().tolist()
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    expected = before.clone()
    expected[:, top:bottom, left:right] = 0
    assert torch.equal(after, expected)
    return top, bottom, left, right


def test_mixup_blends_images_as_it_says():
    torch.manual_seed(0)
    images, labels = torch.randn(7, 3, 32, 32), torch.arange(7)
    blended, partners, weight = mixup(images, labels, 0.2)
    assert partners.tolist() == [6, 5, 4, 3, 2, 1, 0]
    torch.testing.assert_close(blended, weight * images + (1 - weight) * images[partners])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_weight_follows_beta(alpha):
    torch.manual_seed(0)
    image, label = torch.zeros(2, 3, 1, 1), torch.zeros(2, dtype=torch.int64)
    weights = torch.stack([mixup(image, label, alpha)[2] for _ in range(4000)]).double()
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha), whose mean is one half
    assert abs(weights.mean() - 0.5) < 4 * (variance / 4000) ** 0.5
    assert weights.var().item() == pytest.approx(variance, rel=0.1)
    expected = np.random.default_rng(0).beta(alpha, alpha, 4000)
    deciles = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(np.quantile(weights.numpy(), deciles), np.quantile(expected, deciles), atol=0.04)
