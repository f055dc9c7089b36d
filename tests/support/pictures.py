"""Folders and CSV files of small drawn pictures."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit.data.dataset import PictureSource, find_data


def noise(seed: int, side: int = 32) -> np.ndarray:
    """A picture that no other seed gives: uint8 (side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_picture(path: str | Path, seed: int, *, side: int = 32) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, side)).save(path, "PNG")
    return path


def write_folder(root: Path, classes: dict[str, Sequence[int]]) -> Path:
    """A picture for each seed: `{"train/cat": [1, 2]}` gives train/cat/1.png and train/cat/2.png."""
    for name, seeds in classes.items():
        for seed in seeds:
            write_picture(root / name / f"{seed}.png", seed)
    return root


def write_split_folder(root: Path) -> Path:
    """Two classes with three training and two test pictures each."""
    return write_folder(
        root, {"train/cat": [1, 2, 3], "train/dog": [4, 5, 6], "test/cat": [11, 12], "test/dog": [13, 14]}
    )


def open_pictures(data: str | os.PathLike[str], notes: list[str] | None = None, **options: bool) -> PictureSource:
    source = find_data(os.fspath(data), note=([] if notes is None else notes).append, **options)
    assert isinstance(source, PictureSource)
    return source


def pixels_of(images: Iterable) -> set[bytes]:
    """The pictures as a set of their bytes."""
    return {image.numpy().tobytes() for image in images}


def pixels_of_seeds(*seeds: int) -> set[bytes]:
    return {noise(seed).transpose(2, 0, 1).tobytes() for seed in seeds}


def write_colored_folder(root: Path, counts: dict[str, int]) -> Path:
    """Noisy pictures whose mean color tells the class: `{"train/cat": 3}` gives train/cat/0.png to train/cat/2.png."""
    names = sorted({name.rsplit("/", 1)[-1] for name in counts})
    for number, (folder, count) in enumerate(counts.items()):
        color = noise(100 + names.index(folder.rsplit("/", 1)[-1]))[0, 0].astype(int)
        for index in range(count):
            pixels = (color + noise(1000 * number + index) / 8 - 16).clip(0, 255).astype(np.uint8)
            path = root / folder / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root
