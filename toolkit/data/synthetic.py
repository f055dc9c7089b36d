"""Synthetic pictures, `--data demo`: ten shapes in the format of CIFAR-10, generated from a seed.

A small network learns it in a few epochs, yet no single pixel identifies a class: position, size, angle and colors are
random, half of the shapes are dark on light, and noise is added. A mirrored shape stays in its class, so the
augmentation for CIFAR-10 is valid.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

TRAIN_COUNT, TEST_COUNT = 4_000, 1_000
TRAIN_SEED, TEST_SEED = 1, 2

SIZE = 32  # pixels
OVERSAMPLING = 3  # shapes are drawn this much larger, then averaged, for smooth edges

Array = NDArray[np.float64]
Layer = tuple[int, Array]  # 1 to paint or 0 to erase; the corners (K, 2) of a polygon within the unit circle


def _circle(radius: float = 1.0, *, center_x: float = 0.0) -> Array:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([center_x + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _rectangle(half_width: float, half_height: float, *, center_y: float = 0.0) -> Array:
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    return corners * [half_width, half_height] + [0.0, center_y]


def _star(points: int, *, inner_radius: float) -> Array:
    angle = np.pi / points * np.arange(2 * points)
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner_radius)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _flower(petals: int) -> Array:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = 0.7 + 0.3 * np.cos(petals * angle)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    across = 16 * np.sin(t) ** 3
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([across, -up - 2.5], axis=1) / 16


SHAPES: dict[str, list[Layer]] = {
    "circle": [(1, _circle(0.9))],
    "cross": [(1, _rectangle(1.0, 0.28)), (1, _rectangle(0.28, 1.0))],
    "flower": [(1, _flower(5)), (0, _circle(0.25))],
    "heart": [(1, _heart())],
    "moon": [(1, _circle(1.0)), (0, _circle(0.85, center_x=0.5))],
    "ring": [(1, _circle(1.0)), (0, _circle(0.6))],
    "square": [(1, _rectangle(0.75, 0.75))],
    "star": [(1, _star(5, inner_radius=0.4))],
    "stripes": [(1, _rectangle(0.85, 0.18, center_y=y)) for y in (-0.62, 0.0, 0.62)],
    "triangle": [(1, _star(3, inner_radius=0.5))],
}
DRAWN_CLASSES = tuple(SHAPES)


def draw(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` images, balanced over the classes, in random order.

    Returns:
        images: uint8 (count, 3, 32, 32), RGB.
        labels: int64 (count,), indices into `DRAWN_CLASSES`.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(DRAWN_CLASSES))
    masks = _masks(labels, random)[:, None]  # (N, 1, 32, 32)
    shape, background = _colors(count, random)
    noise = 12 * random.standard_normal((count, 3, SIZE, SIZE), dtype=np.float32)
    pictures = background + masks * (shape - background) + noise
    images = np.clip(np.rint(pictures), 0, 255).astype(np.uint8)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _masks(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.float32]:
    """The share of each pixel covered by the shape: float32 (N, 32, 32) in [0, 1]."""
    radius = random.uniform(8.5, 13.0, len(labels))
    center = SIZE / 2 + random.uniform(-1.0, 1.0, (len(labels), 2)) * (SIZE / 2 - radius)[:, None]
    angle = random.uniform(0, 2 * np.pi, len(labels))
    cos, sin = radius * np.cos(angle), radius * np.sin(angle)
    turns = np.stack([cos, sin, -sin, cos], axis=1).reshape(-1, 2, 2)
    masks = np.empty((len(labels), SIZE, SIZE), np.float32)
    for index, label in enumerate(labels):
        masks[index] = np.asarray(_mask(SHAPES[DRAWN_CLASSES[label]], turns[index], center[index]))
    return masks / np.float32(255)


def _mask(layers: list[Layer], turn: Array, center: Array) -> Image.Image:
    """Draw one shape, white on black: corners multiplied by `turn` (2, 2), then moved to `center` (2,)."""
    picture = Image.new("L", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING))
    canvas = ImageDraw.Draw(picture)
    for paint, corners in layers:
        canvas.polygon(((corners @ turn + center) * OVERSAMPLING).ravel().tolist(), fill=255 * paint)
    return picture.reduce(OVERSAMPLING)


def _colors(count: int, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colors of the shapes (N, 3, 1, 1) and of the backgrounds (N, 3, 32, 32), which have a linear gradient."""
    light = random.uniform(150, 250, (count, 3, 1, 1))
    dark = random.uniform(10, 110, (count, 3, 1, 1))
    swapped = random.random((count, 1, 1, 1)) < 0.5
    angle = random.uniform(0, 2 * np.pi, (count, 1, 1, 1))
    across = np.linspace(-1, 1, SIZE)
    slope = np.cos(angle) * across + np.sin(angle) * across[:, None]  # (N, 1, 32, 32)
    shade = random.uniform(-25, 25, (count, 3, 1, 1)) * slope
    shape, background = np.where(swapped, dark, light), np.where(swapped, light, dark) + shade
    return shape.astype(np.float32), background.astype(np.float32)
