"""CSV files of paths, labels and splits."""

import sys
from pathlib import Path

import pytest

from tests.support.pictures import open_pictures, pixels_of, pixels_of_seeds, write_folder, write_picture
from toolkit.data.dataset import write_samples
from toolkit.errors import ToolkitError

pytestmark = pytest.mark.usefixtures("cache")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")

ROWS = "path,label,split\nx/1.png,cat,train\nx/2.png,dog,Training\nx/3.png,cat,dev\nx/4.png,dog,test\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", {"x": range(1, 21)})


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(folder: Path, content: str | bytes) -> str:
    with pytest.raises(ToolkitError) as error:
        open_pictures(write(folder, content)).train()
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        "\ufeff" + ROWS.replace("\n", "\r\n"),
        "Split, Label ,PATH,note\ntrain,cat,x/1.png,\ntrain,dog,x/2.png,\n\nval,cat,x/3.png,\ntest,dog,x/4.png,last",
        ROWS.replace("x/1.png", '"x/1.png"').replace("x/2.png", "./x/../x/2.png"),
    ],
)
def test_columns_in_any_order(folder, content):
    source = open_pictures(write(folder, content))
    assert source.class_names == ("cat", "dog")
    for images, seeds in ((source.train(), [1, 2]), (source.val(), [3]), (source.test(), [4])):
        assert pixels_of(images.images) == pixels_of_seeds(*seeds)


def test_without_splits_the_pictures_are_split_as_those_of_a_folder(folder, tmp_path):
    rows = [f"x/{number}.png,{'cat' if number < 11 else 'dog'}" for number in range(1, 21)]
    listed = open_pictures(write(folder, "path,label\n" + "\n".join(rows)))
    flat = open_pictures(write_folder(tmp_path / "flat", {"cat": range(1, 11), "dog": range(11, 21)}))
    assert listed.train().images.equal(flat.train().images)
    assert listed.test().images.equal(flat.test().images)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "labels.csv is empty"),
        (
            "\n",
            "the first line lacks the column path and label; expected path,label or path,label,split, found nothing",
        ),
        ("path,label\n", "has a header but no rows"),
        ("file,label\nx/1.png,cat\n", "the first line lacks the column path"),
        ("path,label\nx/1.png\n", "line 2 has 1 cells, expected 2: path,label"),
        ("path,label\nx/1.png,\n", "line 2: the label is empty"),
        ("path,label\n,cat\n", "line 2: the path is empty"),
        (ROWS.replace("dev", "holdout"), "line 4: the split is holdout; expected train, val or test"),
        (ROWS.replace("dev", ""), "line 4: the split is empty"),
        ("path,label\n../secret.png,cat\n", "line 2: the path ../secret.png leaves the folder of the CSV file"),
        ("path,label\n/etc/passwd,cat\n", "line 2: the path /etc/passwd leaves the folder of the CSV file"),
        (
            "path,label\nx/1.png,cat\nx/2.png,cat\n",
            "2 to 1,000 classes with training pictures are needed, 1 found: cat",
        ),
        (ROWS.replace("dog,test", "fox,test"), "the class fox has test pictures (x/4.png) but no training pictures"),
        (ROWS.replace("test", "val"), "there are training pictures but no test pictures"),
        (b"path,label\nx/1.png,caf\xe9\n", "is not UTF-8 text (invalid continuation byte: 0xe9)"),
        ("path,label,label\nx/1.png,cat,dog\n", "the first line has the column label twice"),
        ('path,label\n"x/1.png,cat\n', "is not valid CSV"),
        ("path,label\nx/1.png,\x1b[31mred\nx/2.png,dog\n", "control characters"),
        (f"path,label\nx/1.png,{'a' * 200}\nx/2.png,dog\n", "has 200 characters, more than 100"),
        (f"path,label\nx/1.png,{'a' * 20_000}\n", "is not valid CSV"),
        ("path,label\nx\0/1.png,cat\nx/2.png,dog\n", "1 file cannot be read, first "),
    ],
)
def test_unusable_files(folder, content, reason):
    assert reason in refused(folder, content)


@pytest.mark.hostile
def test_missing_pictures_are_all_listed_with_their_lines(folder):
    rows = "path,label\nx/1.png,cat\nx/none.png,cat\nx,dog\nx/2.png,dog\nx/3.png,dog\nx/4.png,cat\n"
    notes: list[str] = []
    with pytest.raises(ToolkitError, match="2 pictures of 6 cannot be used"):
        open_pictures(write(folder, rows), notes).train()
    assert [note.removeprefix(f"{folder}/") for note in notes] == [
        f"x/none.png cannot be read: No such file or directory ({folder}/labels.csv, line 3)",
        "x is a folder, not a file",
    ]


@pytest.mark.hostile
@posix
def test_links_that_leave_the_folder(folder, tmp_path):
    write_picture(tmp_path / "secret/9.png", 9)
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "x/link.png").symlink_to(tmp_path / "secret/9.png")
    for path in ("out/9.png", "x/link.png"):
        assert f"line 2: the path {path} leaves the folder" in refused(folder, f"path,label\n{path},cat\nx/2.png,dog\n")


def test_samples_of_labels_that_are_no_file_names(folder, tmp_path):
    rows = "path,label,split\n" + "".join(
        f"x/{number}.png,{label},{split}\n"
        for number, (label, split) in enumerate(
            [("../up", "train"), ("a:b", "train"), ("..", "train"), ("../up", "test"), ("a:b", "test")], start=1
        )
    )
    paths = write_samples(open_pictures(write(folder, rows)), tmp_path / "samples")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["samples/_up-0001.png", "samples/a_b-0001.png"]
