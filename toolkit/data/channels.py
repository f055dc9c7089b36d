"""Channel statistics: compute mean and standard deviation, and normalize images with them."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.data.cifar import MEAN, STD

Channels = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel over all pixels, scaled to [0, 1]."""

    mean: Channels
    std: Channels


CIFAR10_STATISTICS = ChannelStatistics(MEAN, STD)

_GIVEN = {"cifar10": CIFAR10_STATISTICS, "demo": CIFAR10_STATISTICS}  # the synthetic pictures imitate CIFAR-10

_IMAGES_PER_STEP = 4096


def choose_channel_statistics(source_name: str, images: Tensor) -> ChannelStatistics:
    """Return the statistics for training from scratch: published for CIFAR-10 and the demo data, else computed.

    Args:
        source_name: the name of the data set.
        images: the training images, uint8 (N, 3, H, W), N at least 1.
    """
    return _GIVEN.get(source_name) or compute_channel_statistics(images)


def compute_channel_statistics(images: Tensor) -> ChannelStatistics:
    """Mean and standard deviation of each channel over all pixels, scaled to [0, 1]; the latter at least 1/255.

    Computed from exact integer histograms, so the result does not depend on threads or on the order of the images.

    Args:
        images: uint8 (N, 3, H, W), N at least 1.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in images.cpu().split(_IMAGES_PER_STEP):  # bincount converts its input to int64, eight times the size
        for channel in range(3):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = shares @ levels
    std = (shares @ levels**2 - mean**2).clamp(min=0).sqrt().clamp(min=1 / 255)  # above 0: a divisor
    return ChannelStatistics(_as_channels(mean), _as_channels(std))


def normalize(
    images: Tensor, dtype: torch.dtype = torch.float32, *, statistics: ChannelStatistics = CIFAR10_STATISTICS
) -> Tensor:
    """Scale to [0, 1], subtract the mean and divide by the standard deviation, per channel.

    Args:
        images: uint8 (N, 3, H, W).
        dtype: the type of the result; the computation uses float32.
        statistics: CIFAR-10's by default.
    """
    scale, offset = _scale_and_offset(images.device, statistics)
    return torch.addcmul(offset, images.float(), scale).to(dtype)


@functools.cache
def _scale_and_offset(device: torch.device, statistics: ChannelStatistics) -> tuple[Tensor, Tensor]:
    """Float32 (1, 3, 1, 1) each. Cached: a copy from the host cannot be captured in a CUDA graph."""
    means, stds = (torch.tensor(values, dtype=torch.float64) for values in (statistics.mean, statistics.std))
    scale, offset = 1 / (255 * stds), -means / stds
    return scale.float().view(1, 3, 1, 1).to(device), offset.float().view(1, 3, 1, 1).to(device)


def _as_channels(values: Tensor) -> Channels:
    red, green, blue = values.tolist()
    return red, green, blue
