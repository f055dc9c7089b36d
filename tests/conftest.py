"""What the tests share: small data sets, short recipes, and the command line as a user runs it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import cli
from toolkit.training.data import DataSource, Images
from toolkit.training.recipe import Recipe

ROOT = Path(__file__).parent.parent


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


def coloured_images(count: int, *, seed: int) -> Images:
    """Noise whose mean colour tells the class: learnable in a few steps. Classes are balanced."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    colours = torch.randint(0, 256, (10, 3), generator=torch.Generator().manual_seed(7))
    noise = torch.randint(-40, 41, (count, 3, 32, 32), generator=generator)
    images = (colours[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
    return Images(images=images, labels=labels)


def coloured_source(train: int = 200, test: int = 50) -> FixedSource:
    names = tuple(f"class{number}" for number in range(10))
    return FixedSource("coloured", None, names, coloured_images(train, seed=0), coloured_images(test, seed=1))


@pytest.fixture
def source() -> FixedSource:
    """200 training and 50 test images, of ten classes."""
    return coloured_source()


@pytest.fixture
def recipe() -> Recipe:
    """Everything switched on, in float32, small enough for three epochs to take about a second."""
    return Recipe.from_dict(
        {
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 0.05,
            "data_augmentation": {"mixup_alpha": 0.2, "small_crop_share": 0.34, "small_crop_size": 16},
            "run": {"val_size": 20, "precision": "float32"},
        }
    )


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def cifar() -> Callable[..., Done]:
    """Run a command as the command line does, within this process: cifar("data", "--json", cwd=...).

    An exception that the command line would show as a traceback is raised here.
    """

    def run(*arguments: object, cwd: Path = ROOT) -> Done:
        with contextlib.chdir(cwd):
            result = CliRunner().invoke(cli.app, [str(word) for word in arguments], prog_name="cifar")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return run
