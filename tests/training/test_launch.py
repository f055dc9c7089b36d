"""Training as the command starts it, with an engine and a display that stand in for theirs."""

import dataclasses
import shutil

import pytest

from tests.support.training import same_weights, train_epochs
from toolkit.errors import ToolkitError
from toolkit.recipes.recipe import Recipe, RunSettings
from toolkit.runs.checkpoint import SHIPPED_CHECKPOINT, identify_checkpoint, load_checkpoint, save_checkpoint
from toolkit.runs.folder import RunFolder
from toolkit.training import distillation
from toolkit.training.launch import LaunchOptions, launch


def begin(root, train_on_engine, **options):
    options = LaunchOptions(data="demo", recipe="demo", seeds=2, on="local", runs=root, device="cpu", **options)
    return launch(options, display=None, train_on_engine=train_on_engine)


def test_seeds_interrupted_before_the_first_checkpoint_leave_nothing(tmp_path):
    def interrupt(options, runs, source):
        assert [run.path.name for run in runs] == ["seed0", "seed1"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="interrupted before the first checkpoint; nothing was kept"):
        begin(tmp_path, interrupt, name="new")
    assert not list((tmp_path / "new").glob("seed*"))


def test_seeds_interrupted_after_a_checkpoint_say_how_to_resume(tmp_path):
    def interrupt(options, runs, source):
        runs[1].last.write_bytes(b"a checkpoint")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="0 of 2 seeds are finished.* Resume with: cifar train --seeds 2 "):
        begin(tmp_path, interrupt, name="begun")
    assert sorted(path.name for path in (tmp_path / "begun").glob("seed*")) == ["seed0", "seed1"]


def test_seeds_of_different_data_are_not_summarized(tmp_path):
    """Machines may find other data under the same path."""

    def finish(options, runs, source):
        for number, run in enumerate(runs):
            run.write_summary({"data": {"name": "demo", "train_sha256": str(number)}})

    with pytest.raises(ToolkitError, match="the data differ between machines: seed1 had other data than seed0"):
        begin(tmp_path, finish, name="mixed")
    assert not (tmp_path / "mixed/seeds.json").exists()


def test_a_failure_keeps_the_folders_that_existed_before(tmp_path):
    """Another process may have created them, and trains there."""

    def fail(options, runs, source):
        raise RuntimeError

    def write_and_fail(options, runs, source):
        runs[0].last.write_bytes(b"a checkpoint")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        begin(tmp_path, write_and_fail, name="shared")
    (tmp_path / "shared/seed0/last.pt").unlink()
    with pytest.raises(RuntimeError):
        begin(tmp_path, fail, name="shared")
    assert sorted(path.name for path in (tmp_path / "shared").glob("seed*")) == ["seed0", "seed1"]


def test_a_teacher_is_in_each_run_and_in_the_command_that_resumes(tmp_path):
    teacher = str(SHIPPED_CHECKPOINT)

    def interrupt(options, runs, source):
        for run in runs:
            assert identify_checkpoint(load_checkpoint(run.teacher)) == identify_checkpoint(load_checkpoint(teacher))
            assert run.read_recipe().distillation_weight == 0.5
        runs[0].last.write_bytes(b"a checkpoint")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=f"--teacher {teacher}"):
        begin(tmp_path, interrupt, name="taught", teacher=teacher, changes={"distillation_weight": 0.5})


class SilentDisplay:
    """A display of one run that shows nothing; it interrupts the training after `epochs` epochs."""

    epochs: int | None = None

    def __init__(self, recipe, *, epochs_done, suggest_fast):
        self.done = epochs_done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def epoch(self, record):
        self.done += 1
        if self.done == self.epochs:
            raise KeyboardInterrupt

    def step(self, done, images):
        pass

    def note(self, line):
        pass


class InterruptingDisplay(SilentDisplay):
    epochs = 1


STUDENT = {"epochs": 1, "batch_size": 64, "run": {"val_size": 20, "precision": "float32"}, "distillation_weight": 0.5}


@pytest.fixture
def train_student(tmp_path, source, monkeypatch):
    """Launch a training with distillation in `tmp_path`, with a teacher of two epochs; returns result and notes."""
    preset = tmp_path / "teacher.toml"
    preset.write_text('epochs = 2\nbatch_size = 64\n[run]\nmodel = "m6"\n')
    monkeypatch.setattr(distillation, "TEACHER_RECIPE", str(preset))
    for name in ("find_data", "find_training_data"):
        monkeypatch.setattr(f"toolkit.training.launch.{name}", lambda *_, **__: source)

    def train_student(*, display=SilentDisplay, train_on_engine=None, resume=None, **options):
        notes = []
        changes = {} if resume else STUDENT
        options = LaunchOptions(changes=changes, resume=resume, runs=tmp_path, device="cpu", **options)
        return launch(options, display=display, note=notes.append, train_on_engine=train_on_engine), "\n".join(notes)

    return train_student


def find_teachers(root):
    return sorted(path.name for path in root.glob("teacher-*"))


def test_a_recipe_with_distillation_trains_its_teacher_once(tmp_path, train_student):
    result, notes = train_student(name="first")
    assert "distills from a teacher, which is trained first. --teacher names another" in notes
    teacher = RunFolder(tmp_path / "teacher-m6-seed0")
    assert teacher.is_finished
    taught_by = load_checkpoint(teacher.best)
    assert Recipe.from_dict(taught_by.recipe).run == RunSettings("m6", val_size=20, precision="float32")
    assert result.summary["teacher"] == identify_checkpoint(taught_by)
    result, notes = train_student(name="second")
    assert f"Teacher: {teacher.path}" in notes
    assert result.summary["teacher"] == identify_checkpoint(taught_by)
    assert find_teachers(tmp_path) == ["teacher-m6-seed0"]


@pytest.mark.parametrize("change", ["recipe", "data", "teacher"])
def test_a_run_of_another_recipe_or_data_is_not_the_teacher(tmp_path, train_student, change):
    train_student(name="first")
    run = RunFolder(tmp_path / "teacher-m6-seed0")
    if change == "recipe":
        run.write_recipe(run.read_recipe().replace({"epochs": 3}))
    elif change == "data":
        last = load_checkpoint(run.last)
        save_checkpoint(dataclasses.replace(last, data={**last.data, "train_sha256": "0"}), run.last)
    else:
        run.write_teacher(load_checkpoint(SHIPPED_CHECKPOINT))
    train_student(name="second")
    assert find_teachers(tmp_path) == ["teacher-m6-seed0", "teacher-m6-seed0-2"]


@pytest.mark.parametrize("seeds", [None, 2])
def test_an_interrupted_teacher_is_resumed(tmp_path, train_student, seeds):
    with pytest.raises(KeyboardInterrupt, match=r"1 of 2 epochs are kept in .*teacher-m6-seed0\. Repeat the command"):
        train_student(display=InterruptingDisplay, name="student", seeds=seeds)
    assert not list((tmp_path / "student").glob("**/recipe.toml"))
    train_student(name="student", seeds=seeds)
    assert find_teachers(tmp_path) == ["teacher-m6-seed0"]
    resumed = load_checkpoint(tmp_path / "teacher-m6-seed0/best.pt")
    shutil.rmtree(tmp_path / "teacher-m6-seed0")
    train_student(name="other")
    assert same_weights(load_checkpoint(tmp_path / "teacher-m6-seed0/best.pt").weights, resumed.weights)


def test_seeds_keep_their_teacher(tmp_path, train_student):
    train_student(name="student", seeds=1)
    shutil.rmtree(tmp_path / "teacher-m6-seed0")
    result, _ = train_student(name="student", seeds=2)
    assert not find_teachers(tmp_path)
    assert result.summary["n"] == 2
    assert result.summary["teacher"]["model"] == "m6"


def test_a_killed_process_leaves_a_run_that_gets_its_teacher_on_resume(tmp_path, train_student):
    RunFolder(tmp_path / "student").write_recipe(Recipe.from_dict(STUDENT))
    result, _ = train_student(resume=str(tmp_path / "student"))
    assert result.summary["teacher"]["model"] == "m6"


def test_an_engine_trains_the_teacher_before_the_seeds(tmp_path, train_student, source):
    trained = []

    def train_here(options, runs, source):
        trained.append([run.path.name for run in runs])
        for run in runs:
            train_epochs(run, source)

    train_student(train_on_engine=train_here, name="student", seeds=2, on="local")
    assert trained == [["teacher-m6-seed0"], ["seed0", "seed1"]]

    def interrupt(options, runs, source):
        raise KeyboardInterrupt

    shutil.rmtree(tmp_path / "teacher-m6-seed0")
    with pytest.raises(KeyboardInterrupt, match="interrupted before the first checkpoint; nothing was kept"):
        train_student(train_on_engine=interrupt, name="other", seeds=2, on="local")
    assert not find_teachers(tmp_path)
    assert not list((tmp_path / "other").glob("**/recipe.toml"))
