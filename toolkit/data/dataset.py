"""Data sets: find one by name, folder or CSV file; load it as uint8 tensors; compute its identity; write samples."""

import dataclasses
import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from toolkit.data import cifar, synthetic
from toolkit.data.csv_file import list_csv
from toolkit.data.download import DownloadProgress, check_files
from toolkit.data.folder import LAYOUT, list_folder
from toolkit.data.images import Images
from toolkit.data.picture_set import Findings, PictureSet, load_picture_set
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import as_text, escape, replacing
from toolkit.reporting import Note, Progress, ignore

DEMO = "demo"  # the synthetic pictures; "./demo" names a folder
PICTURES = "pictures"  # the name of every folder and CSV file: a moved folder keeps the identity of its data

FOUND_BY_NAME = (DEMO, cifar.CIFAR100.name)  # a model trained on these needs no --data, as with CIFAR-10

_CACHE = "the cache folder"


@dataclass(frozen=True)
class DataSource:
    """A data set; files are read when `train`, `val`, `test` or `findings` is called.

    Attributes:
        name: "cifar10", "cifar100", "demo", or "pictures" for a folder or CSV file of the user's own pictures.
        folder: the folder that holds the files (of CIFAR, the folder that holds the archive's folder), or the CSV file;
            None for the synthetic pictures.
        class_names: one name per label, in order.
    """

    name: str
    folder: Path | None
    class_names: tuple[str, ...]

    def train(self) -> Images:
        """Read the training images: 50,000 of CIFAR, 4,000 synthetic ones.

        Raises:
            ToolkitError: a file is missing, damaged or not readable.
        """
        if self.folder is None:
            return Images(*synthetic.draw(synthetic.TRAIN_COUNT, seed=synthetic.TRAIN_SEED))
        return cifar.read_cifar(cifar.BY_NAME[self.name], self.folder, train=True)

    def val(self) -> Images | None:
        """Read the validation images where the data set has its own; None where they are split off training.

        Raises:
            ToolkitError: a file is missing, damaged or not readable.
        """
        return None

    def test(self) -> Images:
        """Read the test images: 10,000 of CIFAR, 1,000 synthetic ones. Training never calls this.

        Raises:
            ToolkitError: a file is missing, damaged or not readable.
        """
        if self.folder is None:
            return Images(*synthetic.draw(synthetic.TEST_COUNT, seed=synthetic.TEST_SEED))
        return cifar.read_cifar(cifar.BY_NAME[self.name], self.folder, train=False)

    def findings(self) -> Findings:
        """The pictures that were skipped, removed or are suspicious; empty for CIFAR and synthetic pictures.

        Raises:
            ToolkitError: a file is missing, damaged or not readable.
        """
        return Findings()


@dataclass(frozen=True)
class PictureSource(DataSource):
    """A folder or CSV file of pictures, decoded once.

    Attributes:
        skip_damaged: whether pictures that cannot be read are left out.
        load: decodes the pictures at the first call; later calls return the same result.
    """

    skip_damaged: bool
    load: Callable[[], PictureSet] = field(repr=False, compare=False)

    def train(self) -> Images:
        return self.load().train

    def val(self) -> Images | None:
        return self.load().val

    def test(self) -> Images:
        return self.load().test

    def findings(self) -> Findings:
        return self.load().findings


@dataclass(frozen=True)
class DataStatus:
    """The state of a data set's files, as shown by `cifar data`.

    Attributes:
        name: as of `DataSource`.
        chosen_by: "--data", "$CIFAR_DATA" or "the cache folder".
        folder: as of `DataSource`; of CIFAR, also where the files are missing.
        files: the state of each file of CIFAR (see `toolkit.data.download.check_files`); empty for other data.
        train_count, test_count: the number of images; 0 where a file is missing or damaged; None for a folder or CSV
            file, whose pictures have to be decoded first (`toolkit.data.report`).
    """

    name: str
    chosen_by: str
    folder: Path | None
    files: dict[str, str]
    train_count: int | None
    test_count: int | None

    @property
    def complete(self) -> bool:
        return all(state == "ok" for state in self.files.values())

    def as_dict(self) -> dict[str, Any]:
        folder = as_text(self.folder) if self.folder else None
        return dataclasses.asdict(self) | {"folder": folder, "complete": self.complete}


FindData = Callable[[Mapping[str, str]], DataSource]  # from the identity that a model records; may fetch the data


def find_cache_folder() -> Path:
    """The default folder for downloaded and decoded data: `cifar` in the platform's cache folder."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "cifar"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "cifar"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "cifar"


def find_data(
    data: str | None = None,
    *,
    fetch: bool = True,
    skip_damaged: bool = False,
    progress: DownloadProgress = ignore,
    on_pictures: Progress = ignore,
    note: Note = ignore,
) -> DataSource:
    """Find a data set: `data`, else `$CIFAR_DATA`, else CIFAR-10 in the cache folder, downloaded if necessary.

    The files of a folder or CSV file are listed and its classes are checked; they are decoded when images are read.

    Args:
        data: "cifar10", "cifar100", "demo", a folder, or a CSV file; None for the default.
        fetch: download CIFAR if the cache folder lacks it. Other folders are never written to.
        skip_damaged: continue without pictures that cannot be read.
        progress: receives the progress of a download (see `toolkit.data.download.DownloadProgress`).
        on_pictures: receives the number of decoded pictures and the total.
        note: receives one line for each damaged picture and each remark.

    Raises:
        ToolkitError: the data were not found, are unusable, or the download failed.
    """
    location = _locate(data)
    if location.name == DEMO:
        return DataSource(name=DEMO, folder=None, class_names=synthetic.DRAWN_CLASSES)
    assert location.path is not None
    if location.name == PICTURES:
        listing = list_folder(location.path) if location.path.is_dir() else list_csv(location.path)
        load = functools.cache(
            lambda: load_picture_set(
                listing, find_cache_folder() / PICTURES, skip_damaged=skip_damaged, on_progress=on_pictures, note=note
            )
        )
        return PictureSource(
            name=PICTURES,
            folder=location.path,
            class_names=listing.class_names,
            skip_damaged=skip_damaged,
            load=load,
        )
    dataset = cifar.BY_NAME[location.name]
    missing = [name for name in dataset.archive.files if not (location.path / dataset.archive.folder / name).is_file()]
    if missing and location.chosen_by != _CACHE:
        raise ToolkitError(_missing_message(location, missing))
    if missing and not fetch:
        name = "" if dataset is cifar.CIFAR10 else f" --data {dataset.name}"
        raise ToolkitError(
            f"{dataset.title} is not in the cache folder {location.path}: download it with `cifar data --fetch{name}`, "
            "or name a folder that holds it with --data FOLDER"
        )
    if missing:
        cifar.fetch_cifar(dataset, location.path, progress=progress)
    return DataSource(name=dataset.name, folder=location.path, class_names=dataset.class_names)


def find_data_name(data: str | None = None) -> str | None:
    """Return the name of the data set that `data` or `$CIFAR_DATA` selects; None if neither is set."""
    return _locate(data).name if data or os.environ.get(cifar.VARIABLE) else None


def fetch_data(data: str | None = None, *, progress: DownloadProgress = ignore) -> None:
    """Download CIFAR-10 or CIFAR-100 to the folder where `find_data` expects it; do nothing if it is complete.

    Raises:
        UsageError: `data` is the synthetic set, a CSV file or a folder of pictures.
        ToolkitError: the download failed, or the folder is not writable.
    """
    location = _locate(data)
    if location.path is None or location.name == PICTURES:
        raise UsageError(f"{data or location.path}: only cifar10 and cifar100 can be downloaded, or to a new folder")
    cifar.fetch_cifar(cifar.BY_NAME[location.name], location.path, progress=progress)


def check_data(data: str | None = None) -> DataStatus:
    """Check the files of the data set that `find_data` would use.

    Every MD5 of CIFAR is computed, which takes about a second; the pictures of a folder or CSV file are not read.
    """
    location = _locate(data)
    if location.name == PICTURES:
        return DataStatus(location.name, location.chosen_by, location.path, {}, None, None)
    if location.name == DEMO:
        counts = (synthetic.TRAIN_COUNT, synthetic.TEST_COUNT)
        return DataStatus(location.name, location.chosen_by, location.path, {}, *counts)
    assert location.path is not None
    files = check_files(cifar.BY_NAME[location.name].archive, location.path)
    complete = set(files.values()) == {"ok"}
    counts = (cifar.TRAIN_COUNT, cifar.TEST_COUNT) if complete else (0, 0)
    return DataStatus(location.name, location.chosen_by, location.path, files, *counts)


def identify_data(source_name: str, images: Images) -> dict[str, str]:
    """The identity of training data in runs and models: the name, and `hash_images`."""
    return {"name": source_name, "train_sha256": hash_images(images)}


def hash_images(images: Images) -> str:
    """SHA-256 over the images and the labels; labels as little-endian int64, so it is the same on every machine."""
    digest = hashlib.sha256(images.images.cpu().contiguous().numpy().data)
    digest.update(images.labels.cpu().numpy().astype("<i8").data)
    return digest.hexdigest()


def require_same_data(trained_on: dict[str, str], present: dict[str, str], *, what: str) -> None:
    """Raise an error unless a model was trained on the given data.

    Args:
        trained_on: the identity recorded in the model or run.
        present: `identify_data` of the data.
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
        UsageError: `per_class` is below 1, or a class with test images has fewer.
        ToolkitError: the data cannot be read or the files cannot be written.
    """
    test = source.test()
    counts = torch.bincount(test.labels, minlength=len(source.class_names))
    available = int(counts[counts > 0].min())
    if not 1 <= per_class <= available:
        raise UsageError(f"{per_class} samples per class were requested; the test set allows 1 to {available}")
    paths = []
    for label, class_name in enumerate(source.class_names):
        first = (test.labels == label).nonzero().flatten()[:per_class]
        for number, image in enumerate(test.images[first], start=1):
            path = folder / f"{_as_file_name(class_name)}-{number:04}.png"
            if path in paths:  # another class has the same name without its special characters
                path = folder / f"{_as_file_name(class_name)}-class{label}-{number:04}.png"
            with replacing(path) as temporary:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
            paths.append(path)
    return paths


def _as_file_name(class_name: str) -> str:
    """Replace slashes, and characters that Windows does not allow: a CSV file may name classes freely."""
    return re.sub(r'[\\/:*?"<>|]', "_", class_name).lstrip(".") or "class"


@dataclass(frozen=True)
class _Location:
    """The requested data set, the path of its files (None: synthetic), and the origin of the choice."""

    name: str
    path: Path | None
    chosen_by: str


def _locate(data: str | None) -> _Location:
    variable = os.environ.get(cifar.VARIABLE)
    if data in cifar.BY_NAME:
        return _locate_cifar(cifar.BY_NAME[data], variable)
    for value, chosen_by in [(data, "--data"), (variable, f"${cifar.VARIABLE}")]:
        if value:
            return _interpret(value, chosen_by)
    return _Location(cifar.CIFAR10.name, find_cache_folder(), _CACHE)


def _locate_cifar(dataset: cifar.Cifar, variable: str | None) -> _Location:
    """Locate `dataset` in the folder of `$CIFAR_DATA` if that holds it, else in the cache folder."""
    if variable and variable != DEMO and variable not in cifar.BY_NAME:
        folder = cifar.find_parent_folder(dataset, Path(variable))
        if (folder / dataset.archive.folder).is_dir():
            return _Location(dataset.name, folder, f"${cifar.VARIABLE}")
    return _Location(dataset.name, find_cache_folder(), _CACHE)


def _interpret(value: str, chosen_by: str) -> _Location:
    if value == DEMO:
        return _Location(DEMO, None, chosen_by)
    if value in cifar.BY_NAME:
        return _Location(value, find_cache_folder(), _CACHE)
    path = Path(os.path.abspath(Path(value).expanduser()))
    for dataset in cifar.BY_NAME.values():
        folder = cifar.find_parent_folder(dataset, path)
        if (folder / dataset.archive.folder).is_dir():
            return _Location(dataset.name, folder, chosen_by)
    if path.suffix.lower() == ".csv" or (path.is_dir() and _has_entries(path)):
        return _Location(PICTURES, path, chosen_by)
    return _Location(cifar.CIFAR10.name, path, chosen_by)


def _has_entries(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") for entry in entries)
    except OSError:
        return True  # listing it reports the error


def _missing_message(location: _Location, missing: list[str]) -> str:
    """The message for a path, named by the user, that lacks files."""
    dataset, path = cifar.BY_NAME[location.name], location.path
    assert path is not None
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
    elif len(missing) == len(dataset.archive.files):
        found = f"does not hold {dataset.archive.folder}/ with the {dataset.title} files"
    else:
        found = f"lacks {', '.join(missing)} in {dataset.archive.folder}/"
    return (
        f"no {dataset.title} where {location.chosen_by} points: {escape(path)} {found}; expected a folder that holds "
        f"{dataset.archive.folder}/, a folder of pictures ({LAYOUT}), or a CSV file. "
        f"`cifar data --fetch --data {escape(path)}` downloads {dataset.title} there; --data demo needs no files"
    )
