"""Labeled images in memory."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Labeled images.

    Attributes:
        images: uint8 (N, 3, 32, 32), RGB, contiguous.
        labels: int64 (N,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Images":
        """Select the images at `indices`, int64 (K,), in that order."""
        return Images(images=self.images[indices], labels=self.labels[indices])
