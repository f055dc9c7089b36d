"""Augmentation of whole batches, on the device of the data set.

Randomness comes from torch's default generator of that device, which the loop seeds at each epoch's start.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta


def pad(images: Tensor, padding: int) -> Tensor:
    """uint8 (N, 3, 32, 32) to (N, 32 + 2 * padding, 32 + 2 * padding, 3), channels last, black on all sides."""
    return F.pad(images, (padding,) * 4).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class Windows:
    """Windows in padded images, one for each of B images.

    Attributes:
        top, left: offsets of the upper left corner, int64 (B, 1), pixels.
        mirror: whether the window is mirrored, bool (B, 1).
    """

    top: Tensor
    left: Tensor
    mirror: Tensor

    def to(self, device: torch.device) -> "Windows":
        return Windows(self.top.to(device), self.left.to(device), self.mirror.to(device))

    def select(self, indices: Tensor) -> "Windows":
        """The windows at `indices`, int64 (B,)."""
        return Windows(self.top[indices], self.left[indices], self.mirror[indices])


def draw_windows(
    count: int,
    *,
    room: int,
    random_crop: bool,
    horizontal_flip: bool,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Windows:
    """Draw a window for each of `count` images.

    Args:
        count: number of images.
        room: side of the padded images less that of the window, pixels.
        random_crop: draw each offset uniformly; else the window lies in the middle.
        horizontal_flip: mirror each window with probability one half.
        device: of the tensors.
        generator: on that device; None for torch's default one.
    """
    if random_crop:
        top, left = torch.randint(0, room + 1, (2, count, 1), device=device, generator=generator)
    else:
        top = left = torch.full((count, 1), room // 2, device=device)
    if horizontal_flip:
        mirror = torch.rand(count, 1, device=device, generator=generator) < 0.5
    else:
        mirror = torch.zeros(count, 1, dtype=torch.bool, device=device)
    return Windows(top, left, mirror)


def cut_windows(images: Tensor, indices: Tensor, windows: Windows, *, size: int) -> Tensor:
    """Cut a batch out of padded images.

    Args:
        images: from `pad`: uint8 (N, S, S, 3).
        indices: the images of the batch, int64 (B,), on the same device.
        windows: of these images.
        size: side of the windows, pixels.

    Returns:
        uint8 (B, 3, size, size), in channels_last layout.
    """
    steps = torch.arange(size, device=images.device)
    rows, columns = windows.top + steps, windows.left + steps  # (B, size) each
    columns = torch.where(windows.mirror, columns.flip(1), columns)
    batch = images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, size, size, 3)
    return batch.permute(0, 3, 1, 2)


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
