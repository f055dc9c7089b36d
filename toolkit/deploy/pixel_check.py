"""Compare the pixels that a graph with the input format "picture" computes with the picture rule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.deploy.odd_pictures import Picture
from toolkit.deploy.reference import Float32
from toolkit.inference.image import SIDE, prepare

# Both round sums of the same products, added in different orders: a few of 100,000 values differ by one level.
LEVEL_LIMIT = 1

# Both runs compute the same graph on the same pixels, so they round alike in any precision.
PICTURE_LOGIT_LIMIT = 1e-3


@dataclass(frozen=True)
class PixelDifferences:
    """How far a graph is from the picture rule.

    Attributes:
        pictures: number of pictures.
        compared: number of values, 32 x 32 x 3 for each picture.
        differing: number of values that differ.
        largest: largest difference, in levels of 0 to 255.
        changed: number of values that differ in pictures of 32x32, which both sides must leave as they are.
        logits: largest difference between the logits of a picture and those of its 32x32 pixels.
    """

    pictures: int
    compared: int
    differing: int
    largest: int
    changed: int
    logits: float

    def __str__(self) -> str:
        text = f"{self.differing:,} of {self.compared:,} differ in {self.pictures} pictures, by {self.largest} at most"
        return text + (f"; {self.changed:,} in pictures of 32x32" if self.changed else "")


def compare_pixels(
    *,
    pixels_of: Callable[[Picture], NDArray[np.uint8]],
    logits_of: Callable[[Picture], Float32],
    pictures: Iterable[Picture],
) -> PixelDifferences:
    """Compare a graph with `toolkit.inference.image.prepare`.

    Args:
        pixels_of: resizes a picture, uint8 (height, width, 3), with the graph to uint8 (32, 32, 3).
        logits_of: computes the logits of a picture, float32 (1, K).
        pictures: the pictures to compare on.
    """
    count = compared = differing = largest = changed = 0
    logits = 0.0
    for picture in pictures:
        pixels = pixels_of(picture)
        differences = np.abs(pixels - prepare(Image.fromarray(picture)).astype(np.int16))
        count, compared = count + 1, compared + differences.size
        differing += int(np.count_nonzero(differences))
        largest = max(largest, int(differences.max()))
        if picture.shape == (SIDE, SIDE, 3):
            changed += int(np.count_nonzero(differences))
        logits = max(logits, float(np.abs(logits_of(picture) - logits_of(pixels)).max()))
    return PixelDifferences(count, compared, differing, largest, changed, logits)
