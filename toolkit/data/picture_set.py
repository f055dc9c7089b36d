"""A data set of the user's own pictures: a folder or a CSV file, decoded, split, and cleared of leaks."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.data.cache import load_or_build
from toolkit.data.images import Images
from toolkit.data.leaks import check_labels, count_near_duplicates, find_repeated
from toolkit.data.listing import TEST, TRAIN, UNSPLIT, VAL, Listing, Problem, format_count
from toolkit.data.memory import available_memory_bytes
from toolkit.data.pictures import BYTES_PER_PICTURE, Pictures, decode_pictures
from toolkit.data.split import split_by_digest
from toolkit.errors import ToolkitError
from toolkit.files import as_text, escape
from toolkit.inference.image import SIDE
from toolkit.reporting import Note, Progress, ignore

# In addition to the pixels: path, label, digest, and the thumbnail for the search of near duplicates.
_OVERHEAD_PER_PICTURE = 600

_DROPPED = 255  # sorts after every split


class UnreadablePictures(ToolkitError):
    """Some pictures cannot be used.

    Attributes:
        problems: all of them.
    """

    def __init__(self, message: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Findings:
    """The pictures of a data set that were removed or need attention.

    Attributes:
        skipped: pictures that cannot be used, under `--skip-damaged`.
        removed_from_train: training pictures identical to a validation or test picture.
        removed_from_val: validation pictures identical to a test picture.
        near_duplicates: pairs of a training and a test picture that are nearly identical (`toolkit.data.leaks`); None
            where there are too many pairs to compare.
        small: pictures whose shorter side has fewer than 32 pixels.
        notes: of the listing.
    """

    skipped: tuple[Problem, ...] = ()
    removed_from_train: int = 0
    removed_from_val: int = 0
    near_duplicates: int | None = 0
    small: int = 0
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, as in the run's summary."""
        skipped = [{"path": as_text(problem.path), "error": problem.error} for problem in self.skipped]
        return asdict(self) | {"skipped": skipped, "notes": list(self.notes)}

    def describe(self) -> list[str]:
        """One line for each kind of finding."""
        lines = list(self.notes)
        if self.skipped:
            lines.append(f"skipped {format_count(len(self.skipped), 'picture')} that cannot be read")
        if self.removed_from_train:
            lines.append(
                f"removed {format_count(self.removed_from_train, 'training picture')} identical to a picture held out"
            )
        if self.removed_from_val:
            lines.append(
                f"removed {format_count(self.removed_from_val, 'validation picture')} identical to a test picture"
            )
        if self.near_duplicates:
            lines.append(
                f"{format_count(self.near_duplicates, 'pair')} of a training and a test picture nearly identical: "
                "the test accuracy may be too high"
            )
        if self.near_duplicates is None:
            lines.append("near duplicates were not counted: too many pairs of a training and a test picture")
        if self.small:
            small = format_count(self.small, "picture")
            lines.append(f"{small} with a shorter side below {SIDE} pixels: enlarged, hence blurred")
        return lines


@dataclass(frozen=True)
class PictureSet:
    """The images of the splits, ordered by class and then by digest, so that file names have no influence.

    Attributes:
        train, test: the images.
        val: None if validation images are split off training.
        findings: removed pictures, and those that need attention.
    """

    train: Images
    val: Images | None
    test: Images
    findings: Findings


def load_picture_set(
    listing: Listing,
    cache: Path,
    *,
    skip_damaged: bool = False,
    on_progress: Progress = ignore,
    note: Note = ignore,
) -> PictureSet:
    """Decode the pictures of a listing, or load them from the cache; split them, and remove leaks from training.

    Uses about 3.6 KB of memory per picture.

    Raises:
        UnreadablePictures: pictures cannot be used, and `skip_damaged` is not set.
        ToolkitError: the pictures do not fit in memory, one picture has two labels, or a class or the test set has no
            picture left.
    """
    _require_memory(listing)
    pictures = load_or_build(listing, cache, lambda: _decode(listing, on_progress), note=note)
    skipped = _check_problems(listing, pictures, skip_damaged=skip_damaged, note=note)
    check_labels(listing, pictures.digests, pictures.usable)
    splits, removed = _assign_splits(listing, pictures)
    _require_classes(listing, splits)
    train, val, test = _arrange(listing, pictures, splits)
    findings = Findings(
        skipped=skipped,
        removed_from_train=removed[TRAIN],
        removed_from_val=removed[VAL],
        near_duplicates=pictures.near_duplicates,
        small=int(pictures.small.sum()),
        notes=listing.notes,
    )
    return PictureSet(train, val if len(val) else None, test, findings)


def _decode(listing: Listing, on_progress: Progress) -> Pictures:
    pictures = decode_pictures([listing.full_path(index) for index in range(len(listing))], on_progress=on_progress)
    splits, _ = _assign_splits(listing, pictures)
    train, test = np.flatnonzero(splits == TRAIN), np.flatnonzero(splits == TEST)
    return replace(pictures, near_duplicates=count_near_duplicates(pictures.pixels, train, test))


def _require_memory(listing: Listing) -> None:
    needed, available = len(listing) * (BYTES_PER_PICTURE + _OVERHEAD_PER_PICTURE), available_memory_bytes()
    if available is not None and needed > available:
        raise ToolkitError(
            f"{escape(listing.root)}: {len(listing):,} pictures take {needed / 2**30:.1f} GiB of memory, and "
            f"{available / 2**30:.1f} GiB are available; use fewer pictures or a machine with more memory"
        )


def _check_problems(listing: Listing, pictures: Pictures, *, skip_damaged: bool, note: Note) -> tuple[Problem, ...]:
    """Report each picture that cannot be used to `note`; return them all."""
    decoding = (Problem(listing.paths[index], error) for index, error in sorted(pictures.errors.items()))
    problems = (*listing.problems, *decoding)
    if not problems:
        return ()
    for problem in problems:
        note(problem.error)
    total = len(listing) + len(listing.problems)
    message = f"{format_count(len(problems), 'picture')} of {total:,} cannot be used, first {problems[0].error}"
    if not skip_damaged:
        raise UnreadablePictures(f"{message}. Replace or remove them, or pass --skip-damaged", problems)
    return problems


def _assign_splits(listing: Listing, pictures: Pictures) -> tuple[NDArray[np.uint8], dict[int, int]]:
    """The final split of each picture (_DROPPED: unusable or a leak), and the number of leaks removed by split."""
    splits, usable = listing.splits.copy(), pictures.usable
    splits[~usable] = _DROPPED
    unsplit = np.flatnonzero(splits == UNSPLIT)
    is_test = split_by_digest(listing.labels[unsplit], pictures.digests[unsplit])
    splits[unsplit] = np.where(is_test, TEST, TRAIN).astype(np.uint8)
    kept = np.flatnonzero(usable)
    repeated = kept[find_repeated(pictures.digests[kept], splits[kept])]
    removed = {split: int((splits[repeated] == split).sum()) for split in (TRAIN, VAL)}
    splits[repeated] = _DROPPED
    return splits, removed


def _require_classes(listing: Listing, splits: NDArray[np.uint8]) -> None:
    counts = np.bincount(listing.labels[splits == TRAIN], minlength=len(listing.class_names))
    if empty := [name for name, count in zip(listing.class_names, counts, strict=True) if not count]:
        raise ToolkitError(
            f"{escape(listing.root)}: no training picture of the class {empty[0]} is left"
            + (f" (and of {len(empty) - 1} more)" if len(empty) > 1 else "")
            + ": all are unreadable or identical to pictures held out"
        )
    if not (splits == TEST).any():
        raise ToolkitError(
            f"{escape(listing.root)}: there are no test pictures: all are unreadable, or no class has two different "
            "pictures"
        )


def _arrange(listing: Listing, pictures: Pictures, splits: NDArray[np.uint8]) -> tuple[Images, Images, Images]:
    """Training, validation and test images: consecutive parts of one array, reordered in place to save memory."""
    order = np.lexsort((pictures.digests, listing.labels, splits))
    _permute(pictures.pixels, order)
    images, labels = torch.from_numpy(pictures.pixels), torch.from_numpy(listing.labels[order])
    ends = np.searchsorted(splits[order], [TRAIN, VAL, TEST], side="right")
    starts = [0, *ends[:-1]]
    train, val, test = (Images(images[start:end], labels[start:end]) for start, end in zip(starts, ends, strict=True))
    return train, val, test


def _permute(rows: NDArray[np.uint8], order: NDArray[np.intp]) -> None:
    """Set `rows[:] = rows[order]` without a copy of `rows`, along the cycles of the permutation."""
    pending = order.tolist()
    for start in range(len(pending)):
        if pending[start] == start:
            continue
        first, place = rows[start].copy(), start
        while (source := pending[place]) != start:
            rows[place] = rows[source]
            pending[place] = place
            place = source
        rows[place] = first
        pending[place] = place
