"""The images: find CIFAR-10 or the drawn set, load it as uint8 tensors, identify it, and write samples."""

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

DEMO = "demo"  # the word that stands for the drawn set; "./demo" is a folder


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
            return Images(*synthetic.draw(synthetic.TRAIN_COUNT, seed=synthetic.TRAIN_SEED))
        return cifar.read_cifar10(self.folder, train=True)

    def test(self) -> Images:
        """The test images: 10,000 of CIFAR-10, 1,000 drawn ones. Training never calls this.

        Raises:
            ToolkitError: the files are gone, damaged or cannot be read.
        """
        if self.folder is None:
            return Images(*synthetic.draw(synthetic.TEST_COUNT, seed=synthetic.TEST_SEED))
        return cifar.read_cifar10(self.folder, train=False)


@dataclass(frozen=True)
class DataStatus:
    """What `cifar data` shows.

    Attributes:
        name: "cifar10" or "demo".
        chosen_by: "--data", "$CIFAR_DATA" or "the cache folder".
        folder: the folder that holds, or would hold, `cifar-10-batches-py`; None for the drawn set.
        files: the state of each file, as `toolkit.data.download.state_of_files` gives it; empty for the drawn set.
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

    def as_dict(self) -> dict[str, Any]:
        folder = as_text(self.folder) if self.folder else None
        return dataclasses.asdict(self) | {"folder": folder, "complete": self.complete}


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
        progress: told about a download (see `toolkit.data.download.Progress`).

    Raises:
        ToolkitError: no data there, and none could be fetched.
    """
    folder, chosen_by = _chosen(data)
    if folder is None:
        return DataSource(name=DEMO, folder=None, class_names=synthetic.DRAWN_CLASSES)
    missing = [name for name in cifar.CIFAR10.files if not (folder / cifar.CIFAR10.folder / name).is_file()]
    if missing and chosen_by != "the cache folder":
        raise ToolkitError(_not_there(folder, chosen_by, missing))
    if missing and not fetch:
        raise ToolkitError(
            f"no CIFAR-10 in the cache folder {folder}; fetch it with `cifar data --fetch`, "
            "or name a folder that has it with --data FOLDER"
        )
    if missing:
        cifar.fetch_cifar10(folder, progress=progress)
    return DataSource(name="cifar10", folder=folder, class_names=cifar.CLASS_NAMES)


def data_status(data: str | None = None) -> DataStatus:
    """What is there, in the folder where `find_data` would look; every file's MD5 is computed (about a second)."""
    folder, chosen_by = _chosen(data)
    if folder is None:
        return DataStatus(DEMO, chosen_by, None, {}, synthetic.TRAIN_COUNT, synthetic.TEST_COUNT)
    files = state_of_files(cifar.CIFAR10, folder)
    complete = set(files.values()) == {"ok"}
    counts = (cifar.TRAIN_COUNT, cifar.TEST_COUNT) if complete else (0, 0)
    return DataStatus("cifar10", chosen_by, folder, files, *counts)


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
    for value, chosen_by in [(data, "--data"), (os.environ.get(cifar.VARIABLE), f"${cifar.VARIABLE}")]:
        if value:
            return (None if value == DEMO else cifar.folder_that_holds_batches(Path(value))), chosen_by
    return cache_folder(), "the cache folder"


def _not_there(folder: Path, chosen_by: str, missing: list[str]) -> str:
    """The message for a folder, named by the user, that has not got all the files."""
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
    elif len(missing) == len(cifar.CIFAR10.files):
        found = f"has no {cifar.CIFAR10.folder}/ with the CIFAR-10 files"
    else:
        found = f"lacks {', '.join(missing)} in {cifar.CIFAR10.folder}/"
    return (
        f"no CIFAR-10 where {chosen_by} points: {folder} {found}; expected is a folder that holds "
        f"{cifar.CIFAR10.folder}/, or that folder itself. `cifar data --fetch --data {folder}` fetches it there; "
        "--data demo needs no files"
    )
