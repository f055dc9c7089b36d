"""The run folder: names, never overwritten, found by name, path and age; checkpoints by target."""

import os

import pytest

from toolkit.errors import ToolkitError, UsageError
from toolkit.recipes.recipe import Recipe
from toolkit.runs.folder import (
    RunFolder,
    create_run,
    find_checkpoint,
    find_newest_finished_run,
    find_unfinished_run,
    open_run,
)


def test_folders_are_numbered_and_never_overwritten(tmp_path):
    names = [create_run(Recipe(), stem="fast", root=tmp_path).path.name for _ in range(3)]
    assert names == ["fast", "fast-2", "fast-3"]
    with pytest.raises(UsageError, match="exists: choose another --name"):
        create_run(Recipe(), stem="fast", name="fast", root=tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", ".hidden"])
def test_names_that_are_no_folder_names(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a run: use letters"):
        create_run(Recipe(), stem="x", name=name, root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_run_opens_by_name_and_by_path(tmp_path):
    run = create_run(Recipe(epochs=7), stem="a", root=tmp_path)
    assert open_run("a", root=tmp_path).path == open_run(str(run.path), root=tmp_path).path
    assert run.read_recipe().epochs == 7
    with pytest.raises(ToolkitError, match="no run 'b'; the runs in .* are: a"):
        open_run("b", root=tmp_path)


def test_the_newest_finished_run(tmp_path):
    with pytest.raises(ToolkitError, match="no run in .* has finished: `cifar train` starts one"):
        find_newest_finished_run(root=tmp_path)
    first, second, third = (create_run(Recipe(), stem="a", root=tmp_path) for _ in range(3))
    for age, run in ((10, second), (20, first)):
        run.write_summary({"x": 1})
        os.utime(run.summary, (run.summary.stat().st_mtime - age,) * 2)
    assert find_newest_finished_run(root=tmp_path) == second
    notes = []
    first.write_summary({"data": {"name": "demo"}})
    os.utime(first.summary, (0, 0))
    third.last.touch()
    assert find_newest_finished_run(data="demo", root=tmp_path, note=notes.append) == first
    assert notes == [f"Using {first.path}, not the newer {third.path} (unfinished)"]
    with pytest.raises(ToolkitError, match="is unfinished: resume it with `cifar train --resume"):
        third.read_summary()


def test_a_damaged_summary_is_named(tmp_path):
    run = RunFolder(tmp_path)
    run.summary.write_text('{"best": ')
    with pytest.raises(ToolkitError, match="is damaged"):
        run.read_summary()


def test_a_target_is_a_file_or_the_best_checkpoint_of_a_run(tmp_path):
    run, file, notes = create_run(Recipe(), stem="a", root=tmp_path), tmp_path / "x.pt", []
    file.touch()
    assert find_checkpoint(str(file)) == file
    with pytest.raises(ToolkitError, match="no such file: gone.pt"):
        find_checkpoint("gone.pt", root=tmp_path)
    with pytest.raises(ToolkitError, match="has completed no epoch: `cifar train --resume"):
        find_checkpoint("a", root=tmp_path)
    run.best.touch()
    assert find_checkpoint("a", root=tmp_path, note=notes.append) == run.best
    assert notes == [f"The run {run.path} is unfinished: using its best epoch so far"]
    run.write_summary({})
    assert find_checkpoint(None, root=tmp_path) == run.best


def test_the_newest_run_of_a_stem_that_can_be_resumed(tmp_path):
    assert find_unfinished_run("a", root=tmp_path) is None
    finished, unfinished, not_begun = (create_run(Recipe(), stem="a", root=tmp_path) for _ in range(3))
    for run in (finished, unfinished):
        run.last.touch()
    finished.write_summary({})
    assert find_unfinished_run("a", root=tmp_path) == unfinished
    assert not not_begun.last.exists()
    finished.remove()
    assert find_unfinished_run("a", root=tmp_path) == unfinished
