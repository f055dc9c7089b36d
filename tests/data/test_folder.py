"""Folders of pictures: layouts, names of splits, classes, and everything that a folder may hold by mistake."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.hostile import little_memory
from tests.support.pictures import (
    open_pictures,
    pixels_of,
    pixels_of_seeds,
    write_folder,
    write_picture,
    write_split_folder,
)
from toolkit.data.folder import list_folder
from toolkit.data.listing import natural_sort_key
from toolkit.data.picture_set import UnreadablePictures
from toolkit.errors import ToolkitError

pytestmark = pytest.mark.usefixtures("cache")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX names and links")

TWO_CLASSES = {"train/a": [1], "train/b": [2], "test/a": [3], "test/b": [4]}


def refused(root: Path) -> str:
    """The one-line error for a folder that cannot be used."""
    with pytest.raises(ToolkitError) as error:
        open_pictures(root).train()
    assert str(error.value).isprintable()
    return str(error.value)


# Layouts


def test_training_and_test_folders(tmp_path):
    source = open_pictures(write_split_folder(tmp_path))
    assert (source.name, source.folder, source.class_names) == ("pictures", tmp_path, ("cat", "dog"))
    assert source.train().labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test().labels.tolist() == [0, 0, 1, 1]
    assert source.train().images.shape == (6, 3, 32, 32)
    assert source.train().images.is_contiguous()
    assert pixels_of(source.train().images) == pixels_of_seeds(1, 2, 3, 4, 5, 6)
    assert pixels_of(source.test().images[:2]) == pixels_of_seeds(11, 12)
    assert source.val() is None


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev"])
@pytest.mark.parametrize("test", ["test", "testing", "EVAL"])
def test_names_of_splits(tmp_path, train, val, test):
    write_folder(tmp_path, {f"{train}/a": [1], f"{train}/b": [2], f"{val}/a": [3], f"{test}/a": [4]})
    source = open_pictures(tmp_path)
    for images, seeds in ((source.train(), [1, 2]), (source.val(), [3]), (source.test(), [4])):
        assert pixels_of(images.images) == pixels_of_seeds(*seeds)


def test_pictures_may_lie_in_folders_within_a_class(tmp_path):
    write_folder(tmp_path, {**TWO_CLASSES, "train/a/2024/may": [7], "test/b/x/y": [8]})
    source = open_pictures(tmp_path)
    assert pixels_of(source.train().images[source.train().labels == 0]) == pixels_of_seeds(1, 7)
    assert pixels_of(source.test().images[source.test().labels == 1]) == pixels_of_seeds(4, 8)


def test_a_flat_folder_is_split_by_pixels_not_by_names(tmp_path):
    first = open_pictures(write_folder(tmp_path / "x", {"a": range(20), "b": range(100, 130)}))
    assert [len(first.train()), len(first.test())] == [40, 10]
    assert first.test().labels.tolist() == [0] * 4 + [1] * 6
    for seed in range(20):
        write_picture(tmp_path / "y" / "a" / f"renamed{97 * seed % 20}.png", seed)
    write_folder(tmp_path / "y", {"b/inner": range(100, 130)})
    second = open_pictures(tmp_path / "y")
    assert first.train().images.equal(second.train().images)
    assert first.test().images.equal(second.test().images)


def test_a_class_whose_first_picture_occurs_often_has_test_pictures(tmp_path):
    """Of ten pictures two would be tested, and any one of them may come first."""
    for often in range(5):
        root = tmp_path / str(often)
        for copy in range(6):
            write_folder(root / "a" / str(copy), {"": [often]})
        write_folder(root, {"a": [seed for seed in range(5) if seed != often], "b": range(100, 110)})
        source = open_pictures(root)
        train, test = (images.images[images.labels == 0] for images in (source.train(), source.test()))
        assert 0 < len(test) < 10
        assert not pixels_of(train) & pixels_of(test)


@posix
def test_links_to_the_folders_of_splits_are_reported(tmp_path):
    write_folder(tmp_path / "data", TWO_CLASSES)
    write_folder(tmp_path / "elsewhere", {"a": [5], "b": [6]})
    (tmp_path / "data/val").symlink_to(tmp_path / "elsewhere")
    (problem,) = list_folder(tmp_path / "data").problems
    assert f"val is a link that leaves the folder, to {tmp_path}/elsewhere" in problem.error


def test_a_flat_folder_keeps_identical_pictures_on_one_side(tmp_path):
    for copy in range(6):
        write_folder(tmp_path / "x" / "a" / str(copy), {"": range(5)})
    source = open_pictures(write_folder(tmp_path / "x", {"b": range(100, 105)}))
    a_train, a_test = (images.images[images.labels == 0] for images in (source.train(), source.test()))
    assert len(a_train) + len(a_test) == 30
    assert len(a_test) == 6
    assert not pixels_of(a_train) & pixels_of(a_test)
    assert source.findings().removed_from_train == 0


def test_a_class_of_one_picture_is_trained_on(tmp_path):
    source = open_pictures(write_folder(tmp_path, {"a": [1], "b": [2, 3]}))
    assert source.train().labels.bincount().tolist() == [1, 1]
    assert source.test().labels.tolist() == [1]


def test_classes_named_like_splits(tmp_path):
    """Trains and buses: `train` holds pictures, not folders."""
    assert open_pictures(write_folder(tmp_path, {"train": [1, 2], "bus": [3, 4]})).class_names == ("bus", "train")


def test_natural_order(tmp_path):
    names = ["class10", "class2", "Class1", "10", "9", "b", "a", "a1b10", "a1b9"]
    assert sorted(names, key=natural_sort_key) == ["9", "10", "a", "a1b9", "a1b10", "b", "Class1", "class2", "class10"]
    classes = {f"class{number}": [number, 1000 + number] for number in (10, 2, 1)}
    assert open_pictures(write_folder(tmp_path, classes)).class_names == ("class1", "class2", "class10")


def test_a_hundred_classes(tmp_path):
    source = open_pictures(write_folder(tmp_path, {f"c{label}": [label, 1000 + label] for label in range(100)}))
    assert source.train().labels.tolist() == source.test().labels.tolist() == list(range(100))


def test_hidden_and_system_files_are_ignored(tmp_path):
    write_folder(
        tmp_path, {**TWO_CLASSES, "train/.cache": [7], "train/__MACOSX": [8], ".git/a": [9], "train/a/.x": [10]}
    )
    for name in ("train/a/Thumbs.db", "train/a/.DS_Store", "train/a/notes.txt", "README.md", "train/a/._1.png"):
        (tmp_path / name).write_bytes(b"not a picture")
    listing = list_folder(tmp_path)
    assert listing.paths == tuple(
        os.path.join(name, f"{seed[0]}.png")
        for name, seed in sorted({"test/a": [3], "test/b": [4], "train/a": [1], "train/b": [2]}.items())
    )
    assert (listing.problems, listing.notes) == ((), ())


def test_the_digest_of_a_listing_changes_with_a_file(tmp_path):
    write_split_folder(tmp_path)
    before = list_folder(tmp_path).key
    assert list_folder(tmp_path).key == before
    os.utime(tmp_path / "train/cat/1.png", ns=(1, 1))
    assert list_folder(tmp_path).key != before


def test_remarks_on_what_is_ignored(tmp_path):
    write_folder(tmp_path, {**TWO_CLASSES, "extra/c": [5], "train": [6], "": [7]})
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "c").write_text("not a folder")
    notes = [note.replace(str(tmp_path), "ROOT") for note in open_pictures(tmp_path).findings().notes]
    assert notes == [
        "ROOT/extra is ignored: its name is not that of a split",
        "ROOT/train/c is a file, not a class folder: ignored",
        "ROOT/train/empty has no pictures: ignored",
        "ignored 2 pictures outside of a class folder, such as ROOT/7.png",
    ]


# Folders that cannot be used


def test_classes_are_those_of_the_training_pictures(tmp_path):
    write_folder(tmp_path, {**TWO_CLASSES, "test/c": [5]})
    (tmp_path / "train/c").write_text("a class folder that is a file")
    assert "the class c has test pictures (test/c/5.png) but no training pictures" in refused(tmp_path)


def test_unusable_layouts(tmp_path):
    assert "2 to 1,000 classes with training pictures are needed, 1 found: a" in refused(
        write_folder(tmp_path / "one", {"a": [1, 2]})
    )
    assert "no test/ with test pictures" in refused(
        write_folder(tmp_path / "no test", {"train/a": [1], "train/b": [2]})
    )
    assert "both test/ and testing/ name the test pictures" in refused(
        write_folder(tmp_path / "two tests", {**TWO_CLASSES, "testing/a": [5]})
    )
    (tmp_path / "none" / "a").mkdir(parents=True)
    assert "no pictures found; expected train/CLASS/..." in refused(tmp_path / "none")
    loose = write_folder(tmp_path / "loose", {"": [1, 2]})
    assert "no pictures found" in refused(loose)


def test_more_than_a_thousand_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.data.listing.MAX_CLASSES", 3)
    assert "2 to 3 classes" in refused(write_folder(tmp_path, {name: [1] for name in "abcd"}))


@pytest.mark.hostile
@posix
@pytest.mark.parametrize("name", [b"a\nb", b"\x1b[31mred", b"caf\xe9", b" "])
def test_class_names_that_cannot_be_printed(tmp_path, name):
    write_folder(tmp_path, {os.fsdecode(name): [1], "b": [2]})
    assert "control characters or bytes that are not UTF-8" in refused(tmp_path)


@pytest.mark.hostile
@posix
def test_file_names_with_line_ends_and_foreign_bytes(tmp_path):
    write_split_folder(tmp_path)
    for name in (b"a\nb.png", b"caf\xe9.png"):
        write_picture(tmp_path / "train/cat" / os.fsdecode(name), 100 + len(name))
    assert len(open_pictures(tmp_path).train()) == 8
    (tmp_path / "train/cat" / os.fsdecode(b"no\n\xe9.png")).write_bytes(b"damaged")
    assert r"no\n\xe9.png: not a picture" in refused(tmp_path)


@pytest.mark.hostile
@posix
def test_links_to_pictures_are_followed_and_loops_of_folders_end(tmp_path):
    write_split_folder(tmp_path)
    (tmp_path / "train/cat/again.png").symlink_to("1.png")
    (tmp_path / "train/cat/up").symlink_to(tmp_path)
    (tmp_path / "train/dog/self").symlink_to("self")
    source = open_pictures(tmp_path)
    assert source.train().labels.tolist() == [0] * 4 + [1] * 3
    assert source.findings().notes == (f"{tmp_path}/train/cat/up is a link to a folder of this data set: ignored",)


@pytest.mark.hostile
@posix
def test_links_that_leave_the_folder_are_listed(tmp_path):
    write_split_folder(tmp_path / "data")
    write_picture(tmp_path / "outside/7.png", 7)
    (tmp_path / "data/train/cat/link.png").symlink_to(tmp_path / "outside/7.png")
    (tmp_path / "data/train/dog/more").symlink_to(tmp_path / "outside")
    (tmp_path / "data/train/dog/gone.png").symlink_to("nowhere")
    notes: list[str] = []
    with pytest.raises(UnreadablePictures, match=r"3 pictures of 13 cannot be used.*--skip-damaged") as error:
        open_pictures(tmp_path / "data", notes).train()
    assert [problem.path for problem in error.value.problems] == [
        "train/cat/link.png",
        "train/dog/gone.png",
        "train/dog/more",
    ]
    assert notes == [problem.error for problem in error.value.problems]
    assert f"link.png is a link that leaves the folder, to {tmp_path}/outside/7.png" in notes[0]
    source = open_pictures(tmp_path / "data", skip_damaged=True)
    assert pixels_of(source.train().images) == pixels_of_seeds(1, 2, 3, 4, 5, 6)
    assert [problem["path"] for problem in source.findings().as_dict()["skipped"]] == [
        "train/cat/link.png",
        "train/dog/gone.png",
        "train/dog/more",
    ]


@pytest.mark.hostile
def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    write_folder(write_split_folder(tmp_path), {"train/dog/inner": [7]})
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "inner":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "train/dog/inner cannot be listed: Permission denied" in refused(tmp_path)


class Entry:
    """A picture as os.scandir gives it."""

    def __init__(self, folder: str, name: str) -> None:
        self.name, self.path = name, f"{folder}/{name}"

    def is_dir(self) -> bool:
        return False

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> os.stat_result:
        return os.stat_result((0,) * 10)


@pytest.mark.hostile
def test_very_many_pictures_are_refused_with_figures_before_one_is_read(tmp_path, monkeypatch):
    write_split_folder(tmp_path)
    monkeypatch.setattr("toolkit.data.picture_set.available_memory_bytes", lambda: 2**27)
    scandir = os.scandir

    def many(path):
        if os.path.basename(path) != "cat":
            return scandir(path)
        return nullcontext(Entry(path, f"{number:07}.png") for number in range(50_000))

    monkeypatch.setattr(os, "scandir", many)
    with little_memory(room=2**28):
        assert "100,005 pictures take 0.3 GiB of memory, and 0.1 GiB are available" in refused(tmp_path)
