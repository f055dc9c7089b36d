"""Small data sets whose images are given, the repository's root, and how a command ended."""

from dataclasses import dataclass
from pathlib import Path

import torch

from toolkit.data.dataset import DataSource
from toolkit.data.images import Images

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class FixedSource(DataSource):
    """A data source whose images are given."""

    train_images: Images | None = None
    test_images: Images | None = None

    def train(self) -> Images:
        assert self.train_images is not None
        return self.train_images

    def test(self) -> Images:
        assert self.test_images is not None, "this data set has no test images"
        return self.test_images


def colored_images(count: int, *, seed: int) -> Images:
    """Noise whose mean color tells the class: learnable in a few steps. Classes are balanced."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    colors = torch.randint(0, 256, (10, 3), generator=torch.Generator().manual_seed(7))
    noise = torch.randint(-40, 41, (count, 3, 32, 32), generator=generator)
    images = (colors[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
    return Images(images=images, labels=labels)


def colored_source(train: int = 200, test: int = 50) -> FixedSource:
    names = tuple(f"class{number}" for number in range(10))
    return FixedSource("colored", None, names, colored_images(train, seed=0), colored_images(test, seed=1))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str
