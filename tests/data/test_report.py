"""The report of a data set, as a table and as JSON, and the contact sheet."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.pictures import noise, open_pictures, write_folder, write_picture, write_split_folder
from toolkit.data.dataset import find_data
from toolkit.data.report import draw_contact_sheet, report_data

pytestmark = pytest.mark.usefixtures("cache")


def test_the_report_of_a_folder(tmp_path):
    write_folder(write_split_folder(tmp_path), {"val/dog": [21], "train/eel": range(30, 61), "train/cat/x": [13]})
    (tmp_path / "test/cat/11.png").unlink()
    write_picture(tmp_path / "train/dog/small.png", 5000, side=20)
    (tmp_path / "test/dog/13.png").rename(tmp_path / "test/cat/13.png")
    (tmp_path / "train/eel/bad.png").write_bytes(b"")
    report = report_data(open_pictures(tmp_path, skip_damaged=True))
    assert report.rows() == [
        ("class", "training", "validation", "test", "share"),
        ("cat", "3", "0", "2", "7.9%"),
        ("dog", "4", "1", "1", "10.5%"),
        ("eel", "31", "0", "0", "81.6%"),
        ("all", "38", "1", "3", ""),
    ]
    assert report.notes == [
        "skipped 1 picture that cannot be read",
        "removed 1 training picture identical to a picture held out",
        "1 picture with a shorter side below 32 pixels: enlarged, hence blurred",
        "without test pictures: eel",
        "the largest class has 10 times the training pictures of the smallest",
    ]
    found = json.loads(json.dumps(report.as_dict()))
    assert found["classes"][2] == {"name": "eel", "train": 31, "val": 0, "test": 0, "share": 31 / 38}
    assert found["imbalance"] == pytest.approx(31 / 3)
    assert found["findings"]["removed_from_train"] == 1
    assert (found["name"], found["folder"], found["train_count"]) == ("pictures", str(tmp_path), 38)
    assert found["notes"] == report.notes


def test_the_report_of_the_drawn_set():
    report = report_data(find_data("demo"))
    assert report.rows()[1] == ("circle", "400", "0", "100", "10.0%")
    assert (report.folder, report.notes, report.imbalance) == (None, [], 1.0)


def test_the_contact_sheet_shows_pictures_as_the_network_sees_them(tmp_path):
    write_split_folder(tmp_path / "data")
    path = draw_contact_sheet(open_pictures(tmp_path / "data"), tmp_path / "sheet.png", per_class=2)
    sheet = np.asarray(Image.open(path))
    shown = [sheet[24:88:2, left : left + 64 : 2] for left in (4, 72)]  # of the first class
    pictures = [noise(seed) for seed in (1, 2, 3)]
    for picture in shown:
        assert any(np.array_equal(picture, expected) for expected in pictures)
    assert not np.array_equal(*shown)
    assert (sheet[4:24, 4:140] < 128).any()  # its name


@pytest.mark.parametrize("classes", [2, 40])
def test_a_contact_sheet_is_about_as_wide_as_high(tmp_path, classes):
    write_folder(tmp_path, {f"a very long name of a class, the number {n}": [n, 1000 + n] for n in range(classes)})
    path = draw_contact_sheet(open_pictures(tmp_path), tmp_path / "sheet.png")
    width, height = Image.open(path).size
    assert 0.3 < width / height < 3.5
