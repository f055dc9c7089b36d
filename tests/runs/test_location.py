"""The data that a model was trained on, found by its own record and by the location in its run folder."""

import pytest

from tests.support.pictures import write_colored_folder
from toolkit.errors import UsageError
from toolkit.runs.location import FILE, DataLocation, find_training_data, read_location


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder whose pictures are in pets/ beside it."""
    monkeypatch.delenv("CIFAR_DATA", raising=False)
    write_colored_folder(tmp_path / "pets", {"cat": 4, "dog": 4})
    folder = tmp_path / "run"
    folder.mkdir()
    DataLocation(tmp_path / "pets", skip_damaged=True).write(folder)
    return folder


def find(run, recorded, data=None):
    notes = []
    source = find_training_data(recorded, data=data, model=run / "best.pt", note=notes.append)
    return (source.name, source.folder), notes


def test_recorded_data_are_found_by_name(run):
    notes = ["Using the demo data, on which this model was trained"]
    assert find(run, {"name": "demo"}) == (("demo", None), notes)


@pytest.mark.parametrize("recorded", [{"name": "pictures"}, {}])  # {}: a run without a checkpoint
def test_recorded_pictures_are_found_by_the_run_folder(run, recorded):
    pets = run.parent / "pets"
    notes = [f"Using the pictures in {pets}, on which this model was trained"]
    assert find(run, recorded) == (("pictures", pets), notes)


def test_named_data_come_first(run):
    assert find(run, {"name": "pictures"}, data="demo") == (("demo", None), [])


@pytest.mark.parametrize("content", [None, "", "[]", '{"path": "/nowhere", "skip_damaged": false}', "[" * 10_000])
def test_pictures_whose_place_is_unknown_must_be_named(run, content):
    (run / FILE).unlink()
    if content is not None:
        (run / FILE).write_text(content)
    assert read_location(run / "best.pt") is None
    with pytest.raises(UsageError, match="trained on a folder of pictures: name it with --data FOLDER"):
        find(run, {"name": "pictures"})
