"""Pictures that occur twice: across splits, under two labels, and nearly the same."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import (
    open_pictures,
    pixels_of,
    pixels_of_seeds,
    write_folder,
    write_picture,
    write_split_folder,
)
from toolkit.data import leaks
from toolkit.data.leaks import count_near_duplicates, find_repeated
from toolkit.data.listing import TEST, TRAIN, VAL
from toolkit.data.split import split_images
from toolkit.errors import ToolkitError

pytestmark = pytest.mark.usefixtures("cache")


def test_pictures_held_out_are_removed_from_training(tmp_path):
    write_split_folder(tmp_path)
    write_folder(tmp_path, {"val/cat": [1, 21], "train/dog/again": [13, 4], "val/dog": [14, 22]})
    source = open_pictures(tmp_path)
    assert pixels_of(source.train().images) == pixels_of_seeds(2, 3, 4, 5, 6)  # not 1 and 13; 4 twice
    assert len(source.train()) == 6
    assert pixels_of(source.val().images) == pixels_of_seeds(1, 21, 22)  # not 14
    assert pixels_of(source.test().images) == pixels_of_seeds(11, 12, 13, 14)
    findings = source.findings()
    assert (findings.removed_from_train, findings.removed_from_val, findings.near_duplicates) == (2, 1, 0)
    assert findings.describe() == [
        "removed 2 training pictures identical to a picture held out",
        "removed 1 validation picture identical to a test picture",
    ]


def test_identical_training_pictures_are_not_split_between_training_and_validation(tmp_path):
    write_split_folder(tmp_path)
    for copy in "abc":
        write_folder(tmp_path, {f"train/cat/{copy}": range(20, 30), f"train/dog/{copy}": range(30, 40)})
    train, val = split_images(open_pictures(tmp_path).train(), 0.2)
    assert val.labels.tolist() == [0] * 7 + [1] * 7
    assert len(train) + len(val) == 66
    assert not pixels_of(train.images) & pixels_of(val.images)


@pytest.mark.parametrize("other", ["train/dog", "test/dog"])
def test_one_picture_under_two_labels_is_an_error(tmp_path, other):
    write_folder(write_split_folder(tmp_path), {f"{other}/copy": [1, 2]})
    with pytest.raises(ToolkitError) as error:
        open_pictures(tmp_path).train()
    message = str(error.value)
    assert "the same picture has two labels: " in message
    for seed in (1, 2):
        if f"{seed}.png is" in message:
            assert f"{tmp_path}/train/cat/{seed}.png is cat" in message
            assert f"{tmp_path}/{other}/copy/{seed}.png is dog" in message
    assert message.endswith("the same applies to 1 more. Remove one of each pair")


def test_a_class_of_which_nothing_is_left(tmp_path):
    write_folder(tmp_path, {"train/a": [1], "train/b": [2, 3], "test/a": [1], "test/b": [4]})
    with pytest.raises(ToolkitError, match=r"no training picture of the class a is left: all are unreadable or ident"):
        open_pictures(tmp_path).train()


def test_find_repeated_by_precedence_of_the_splits():
    digests = np.array([b"a", b"b", b"a", b"c", b"b", b"a", b"d"], "S16")
    splits = np.array([TRAIN, TRAIN, VAL, TRAIN, TEST, TEST, VAL], np.uint8)
    assert find_repeated(digests, splits).tolist() == [True, True, True, False, False, False, False]
    assert find_repeated(digests[:0], splits[:0]).tolist() == []


# Near duplicates


def smooth(seed: int) -> np.ndarray:
    """A picture with structure, uint8 (32, 32, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC))


def saved_as_jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


CHANGES = {
    "saved as JPEG": saved_as_jpeg,
    "brighter": lambda picture: np.clip(picture * 0.6 + 60, 0, 255).astype(np.uint8),
    "moved by half a pixel": lambda picture: ((picture + np.roll(picture, 1, axis=1).astype(int)) // 2).astype(
        np.uint8
    ),
    "with a mark": lambda picture: np.where(np.indices((32, 32)).sum(0)[..., None] < 3, 255, picture).astype(np.uint8),
}


def count(train: list[np.ndarray], test: list[np.ndarray]) -> int | None:
    pixels = np.stack([*train, *test]).transpose(0, 3, 1, 2)
    return count_near_duplicates(pixels, np.arange(len(train)), np.arange(len(train), len(pixels)))


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near_duplicates(change):
    pictures = [smooth(seed) for seed in range(20)]
    assert count(pictures, [CHANGES[change](picture) for picture in pictures]) == 20


def test_others_are_not():
    plain = [np.full((32, 32, 3), level, np.uint8) for level in (0, 99, 100, 255)]
    assert (
        count([smooth(seed) for seed in range(20)] + plain[:2], [smooth(seed) for seed in range(20, 60)] + plain) == 0
    )


def test_the_count_is_that_of_all_pairs(monkeypatch):
    """With a low limit, so that there are many near duplicates, and blocks of a few pictures."""
    monkeypatch.setattr(leaks, "NEAR_CORRELATION", 0.1)
    monkeypatch.setattr(leaks, "_BLOCK", 7)
    pictures = np.stack([smooth(seed) for seed in range(60)])
    values = pictures.astype(float) - pictures.mean(axis=(1, 2), keepdims=True)
    vectors = values.reshape(60, -1) / np.linalg.norm(values.reshape(60, -1), axis=1, keepdims=True)
    expected = int((vectors[:40] @ vectors[40:].T >= 0.1).sum())
    assert expected > 10
    assert count(list(pictures[:40]), list(pictures[40:])) == expected


def test_too_many_pairs_are_not_counted(monkeypatch):
    monkeypatch.setattr(leaks, "MAX_PAIRS", 3)
    assert count([smooth(0)] * 2, [smooth(1)] * 2) is None


def test_near_duplicates_are_a_finding(tmp_path):
    write_split_folder(tmp_path)
    Image.fromarray(smooth(1)).save(tmp_path / "train/cat/smooth.png")
    write_picture(tmp_path / "test/cat/x.png", 31)
    Image.fromarray(saved_as_jpeg(smooth(1))).save(tmp_path / "test/cat/again.png")
    for _ in ("decoded", "from the cache"):
        findings = open_pictures(tmp_path).findings()
        assert findings.near_duplicates == 1
        assert findings.describe() == [
            "1 pair of a training and a test picture nearly identical: the test accuracy may be too high"
        ]
