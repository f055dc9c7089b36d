"""Synthetic pictures of odd sizes and contents, on which the gate compares the picture rule inside a graph."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # (height, width, 3), RGB

SEED = 0
SIZES = [  # (width, height)
    (1, 1),
    (1, 3000),
    (3000, 1),
    (2, 3),
    (16, 16),
    (31, 33),
    (32, 32),
    (33, 31),
    (64, 64),
    (97, 150),
    (480, 640),  # portrait
    (640, 480),  # landscape
]
TWELVE_MEGAPIXELS = (4000, 3000)


def draw_pictures() -> Iterator[Picture]:
    """Draw a photograph-like picture, noise and sharp edges in each size; then a large photograph-like picture.

    Each call draws the same pictures.
    """
    generator = np.random.default_rng(SEED)
    for width, height in SIZES:
        yield draw_photograph(generator, width, height)
        yield generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield draw_edges(width, height)
    yield draw_photograph(generator, *TWELVE_MEGAPIXELS)


def draw_photograph(generator: np.random.Generator, width: int, height: int) -> Picture:
    """Draw structures of all scales, with higher contrast at coarser scales as in photographs, and sensor noise."""
    levels = 4 * generator.standard_normal((height, width, 3), np.float32)
    for cells, strength in [(2, 60), (5, 40), (17, 25), (65, 12), (257, 6)]:
        noise = strength * generator.standard_normal((3, cells, cells), np.float32)
        for channel, grid in enumerate(noise):
            enlarged = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
            levels[:, :, channel] += np.asarray(enlarged)
    return np.clip(levels + 128, 0, 255).astype(np.uint8)


def draw_edges(width: int, height: int) -> Picture:
    """Black, white and saturated stripes that get narrower: a cubic filter overshoots at every edge."""
    x = np.linspace(0, 1, width)[np.newaxis, :]
    y = np.linspace(0, 1, height)[:, np.newaxis]
    waves = [np.sin(90 * x * x + 20 * y), np.sin(90 * y * y - 20 * x), np.sin(60 * x * y)]  # (height, width) each
    return np.stack([np.where(wave > 0, 255, 0) for wave in waves], axis=2).astype(np.uint8)
