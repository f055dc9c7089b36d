"""Training as the command starts it, with an engine and a display that stand in for theirs."""

import pytest

from toolkit.errors import ToolkitError
from toolkit.runs.checkpoint import SHIPPED_CHECKPOINT, identify_checkpoint, load_checkpoint
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
