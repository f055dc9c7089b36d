"""The run folder: names, what is never overwritten, which run is meant."""

import os

import pytest

from toolkit.errors import ToolkitError, UsageError
from toolkit.recipes.recipe import Recipe
from toolkit.runs.folder import RunFolder, create_run, newest_finished_run, open_run


def test_folders_are_numbered_and_never_overwritten(tmp_path):
    names = [create_run(Recipe(), stem="fast", root=tmp_path).path.name for _ in range(3)]
    assert names == ["fast", "fast-2", "fast-3"]
    with pytest.raises(UsageError, match="exists already"):
        create_run(Recipe(), stem="fast", name="fast", root=tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", ".hidden"])
def test_names_that_are_no_folder_names(tmp_path, name):
    with pytest.raises(UsageError, match="is no name for a run"):
        create_run(Recipe(), stem="x", name=name, root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_run_opens_by_name_and_by_path(tmp_path):
    run = create_run(Recipe(epochs=7), stem="a", root=tmp_path)
    assert open_run("a", root=tmp_path).path == open_run(str(run.path), root=tmp_path).path
    assert run.recipe().epochs == 7
    with pytest.raises(ToolkitError, match="no run 'b'; the runs in .* are: a"):
        open_run("b", root=tmp_path)


def test_the_newest_finished_run(tmp_path):
    with pytest.raises(ToolkitError, match="no finished run"):
        newest_finished_run(root=tmp_path)
    first, second, third = (create_run(Recipe(), stem="a", root=tmp_path) for _ in range(3))
    for age, run in ((10, second), (20, first)):
        run.write_summary({"x": 1})
        os.utime(run.summary, (run.summary.stat().st_mtime - age,) * 2)
    assert newest_finished_run(root=tmp_path) == second
    with pytest.raises(ToolkitError, match="is not finished: `cifar train --resume"):
        third.read_summary()


def test_a_damaged_summary_is_said_to_be_damaged(tmp_path):
    run = RunFolder(tmp_path)
    run.summary.write_text('{"best": ')
    with pytest.raises(ToolkitError, match="is damaged"):
        run.read_summary()
