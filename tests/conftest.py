"""What the tests share: small data sets, short recipes, and the command line as a user runs it."""

import os

# Before torch is imported, here and in the processes that tests start: on small tensors one thread is as fast as two,
# and much faster beside other programs, whose turns on the cores the threads would otherwise wait for.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from tests.support.sources import ROOT, Done, FixedSource, colored_source
from toolkit.data import synthetic
from toolkit.deploy.accuracy import DEFAULT_MIN_ACCURACY
from toolkit.recipes.recipe import Recipe

# A shell ignores Ctrl-C in what it starts in the background, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def images_drawn_once() -> Iterator[None]:
    """Draw the images of `--data demo` once a session: it takes a second, and every command does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "draw", functools.cache(synthetic.draw))
        yield


@pytest.fixture(autouse=True, scope="session")
def floors_of_the_tests_data() -> Iterator[None]:
    """The data sets of the tests of deployment require what CIFAR-10 does, without --min-accuracy."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("blocks", "few"):
            patch.setitem(DEFAULT_MIN_ACCURACY, name, DEFAULT_MIN_ACCURACY["cifar10"])
        yield


@pytest.fixture
def source() -> FixedSource:
    """200 training and 50 test images, of ten classes."""
    return colored_source()


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
