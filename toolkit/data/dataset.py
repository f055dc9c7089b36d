"""Data sets: find CIFAR-10 or the drawn set, load it as uint8 tensors, compute its identity, and write samples."""

import dataclasses
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from toolkit.data import cifar, synthetic
from toolkit.data.download import Progress, state_of_files
from toolkit.data.images import Images
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import as_text, replacing
from toolkit.reporting import ignore

DEMO = "demo"  # the drawn set; "./demo" names a folder


@dataclass(frozen=True)
class DataSource:
    """A data set; files are read when `train` or `test` is called.

    Attributes:
        name: "cifar10" or "demo".
        folder: the folder that holds `cifar-10-batches-py`; None where the images are drawn.
        class_names: one name per label, in order.
    """

    name: str
    folder: Path | None
    class_names: tuple[str, ...]

    def train(self) -> Images:
        """Read the training images: 50,000 of CIFAR-10, 4,000 drawn ones.

        Raises:
            ToolkitError: a file is missing, damaged or not readable.
        """
        if self.folder is None:
            return Images(*synthetic.draw(synthetic.TRAIN_COUNT, seed=synthetic.TRAIN_SEED))
        return cifar.read_cifar10(self.folder, train=True)

    def test(self) -> Images:
        """Read the test images: 10,000 of CIFAR-10, 1,000 drawn ones. Training never calls this.

        Raises:
            ToolkitError: a file is missing, damaged or not readable.
        """
        if self.folder is None:
            return Images(*synthetic.draw(synthetic.TEST_COUNT, seed=synthetic.TEST_SEED))
        return cifar.read_cifar10(self.folder, train=False)


@dataclass(frozen=True)
class DataStatus:
    """The state of a data set's files, as shown by `cifar data`.

    Attributes:
        name: "cifar10" or "demo".
        chosen_by: "--data", "$CIFAR_DATA" or "the cache folder".
        folder: the folder that holds, or would hold, `cifar-10-batches-py`; None for the drawn set.
        files: the state of each file (see `toolkit.data.download.state_of_files`); empty for the drawn set.
        train_count, test_count: the number of images; 0 where a file is missing or damaged.
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

    def as_dict(self) -> dict[str, Any]:
        folder = as_text(self.folder) if self.folder else None
        return dataclasses.asdict(self) | {"folder": folder, "complete": self.complete}


def cache_folder() -> Path:
    """The default folder for downloaded and decoded data: `cifar` in the platform's cache folder."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "cifar"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "cifar"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "cifar"


def find_data(data: str | None = None, *, fetch: bool = True, progress: Progress = ignore) -> DataSource:
    """Find a data set: `data`, else `$CIFAR_DATA`, else CIFAR-10 in the cache folder, downloaded if necessary.

    Args:
        data: a folder, or "demo" for the drawn set; None for the default.
        fetch: download CIFAR-10 where the cache folder lacks it. A folder that the user named is never written to.
        progress: receives the progress of a download (see `toolkit.data.download.Progress`).

    Raises:
        ToolkitError: the data were not found, or the download failed.
    """
    folder, chosen_by = _choose_folder(data)
    if folder is None:
        return DataSource(name=DEMO, folder=None, class_names=synthetic.DRAWN_CLASSES)
    missing = [name for name in cifar.CIFAR10.files if not (folder / cifar.CIFAR10.folder / name).is_file()]
    if missing and chosen_by != "the cache folder":
        raise ToolkitError(_missing_message(folder, chosen_by, missing))
    if missing and not fetch:
        raise ToolkitError(
            f"CIFAR-10 is not in the cache folder {folder}: download it with `cifar data --fetch`, "
            "or name a folder that holds it with --data FOLDER"
        )
    if missing:
        cifar.fetch_cifar10(folder, progress=progress)
    return DataSource(name="cifar10", folder=folder, class_names=cifar.CLASS_NAMES)


def data_status(data: str | None = None) -> DataStatus:
    """Check the files of the data set that `find_data` would use; computes every MD5, which takes about a second."""
    folder, chosen_by = _choose_folder(data)
    if folder is None:
        return DataStatus(DEMO, chosen_by, None, {}, synthetic.TRAIN_COUNT, synthetic.TEST_COUNT)
    files = state_of_files(cifar.CIFAR10, folder)
    complete = set(files.values()) == {"ok"}
    counts = (cifar.TRAIN_COUNT, cifar.TEST_COUNT) if complete else (0, 0)
    return DataStatus("cifar10", chosen_by, folder, files, *counts)


def data_identity(source_name: str, images: Images) -> dict[str, str]:
    """The identity of training data in runs and models: the name, and `images_sha256`."""
    return {"name": source_name, "train_sha256": images_sha256(images)}


def images_sha256(images: Images) -> str:
    """SHA-256 over the images and the labels; labels as little-endian int64, so it is the same on every machine."""
    digest = hashlib.sha256(images.images.cpu().contiguous().numpy().data)
    digest.update(images.labels.cpu().numpy().astype("<i8").data)
    return digest.hexdigest()


def require_same_data(trained_on: dict[str, str], present: dict[str, str], *, what: str) -> None:
    """Raise an error unless a model was trained on the given data.

    Args:
        trained_on: the identity recorded in the model or run.
        present: `data_identity` of the data.
        what: the name of the model or run, for the message.

    Raises:
        ToolkitError: the two differ.
    """
    if trained_on != present:
        raise ToolkitError(
            f"{what} was trained on {_describe(trained_on)}, but these data are {_describe(present)}: "
            "name its training data with --data"
        )


def _describe(identity: dict[str, str]) -> str:
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
    available = int(torch.bincount(test.labels, minlength=len(source.class_names)).min())
    if not 1 <= per_class <= available:
        raise UsageError(f"{per_class} samples per class were requested; the test set allows 1 to {available}")
    paths = []
    for label, class_name in enumerate(source.class_names):
        first = (test.labels == label).nonzero().flatten()[:per_class]
        for number, image in enumerate(test.images[first], start=1):
            path = folder / f"{class_name}-{number:04}.png"
            with replacing(path) as temporary:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
            paths.append(path)
    return paths


def _choose_folder(data: str | None) -> tuple[Path | None, str]:
    """The folder of the data (None: the drawn set), and the origin of the choice."""
    for value, chosen_by in [(data, "--data"), (os.environ.get(cifar.VARIABLE), f"${cifar.VARIABLE}")]:
        if value:
            return (None if value == DEMO else cifar.folder_that_holds_batches(Path(value))), chosen_by
    return cache_folder(), "the cache folder"


def _missing_message(folder: Path, chosen_by: str, missing: list[str]) -> str:
    """The message for a folder, named by the user, that lacks files."""
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
    elif len(missing) == len(cifar.CIFAR10.files):
        found = f"has no {cifar.CIFAR10.folder}/ with the CIFAR-10 files"
    else:
        found = f"lacks {', '.join(missing)} in {cifar.CIFAR10.folder}/"
    return (
        f"no CIFAR-10 where {chosen_by} points: {folder} {found}; expected a folder that holds "
        f"{cifar.CIFAR10.folder}/, or that folder itself. `cifar data --fetch --data {folder}` downloads it there; "
        "--data demo needs no files"
    )
