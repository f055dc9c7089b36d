"""Augmentation of whole batches, on the device of the data set.

Randomness comes from torch's default generator of that device, which the loop seeds at each epoch's start.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta


def pad(images: Tensor, padding: int) -> Tensor:
    """uint8 (N, 3, 32, 32) to (N, 32 + 2 * padding, 32 + 2 * padding, 3), channels last, black on all sides."""
    return F.pad(images, (padding,) * 4).permute(0, 2, 3, 1).contiguous()


def crop_and_flip(images: Tensor, indices: Tensor, *, size: int, random_crop: bool, horizontal_flip: bool) -> Tensor:
    """Cut a batch out of padded images: a random window of each, mirrored with probability one half.

    Args:
        images: from `pad`: uint8 (N, S, S, 3).
        indices: the images of the batch, int64 (B,), on the same device.
        size: side of the window, pixels.
        random_crop: draw each offset uniformly; else the window lies in the middle.
        horizontal_flip: whether images are mirrored.

    Returns:
        uint8 (B, 3, size, size), in channels_last layout.
    """
    batch, room = len(indices), images.shape[1] - size
    device = images.device
    if random_crop:
        top, left = torch.randint(0, room + 1, (2, batch, 1), device=device)  # (B, 1) each
    else:
        top = left = torch.full((batch, 1), room // 2, device=device)
    steps = torch.arange(size, device=device)
    rows, columns = top + steps, left + steps  # (B, size) each
    if horizontal_flip:
        mirror = torch.rand(batch, 1, device=device) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    windows = images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, size, size, 3)
    return windows.permute(0, 3, 1, 2)


def mixup(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each image with a second one of the batch, by one weight per batch from Beta(alpha, alpha).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412. The second
    image is the one at the mirrored position in the batch: batches are shuffled, so a fixed pairing is sufficient.

    Args:
        images: float (B, 3, H, W).
        labels: int64 (B,).
        alpha: above 0.

    Returns:
        The mixed images; the labels of the second images; the weight of the first labels, float32 (), in [0, 1].
    """
    where = "cpu" if images.device.type == "mps" else images.device  # MPS has no such operator
    concentration = torch.full((), alpha, device=where)
    weight = Beta(concentration, concentration, validate_args=False).sample().to(images.device)  # checks would wait
    return torch.lerp(images.flip(0), images, weight.to(images.dtype)), labels.flip(0), weight
