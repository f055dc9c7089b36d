"""Several seeds of one recipe: each is what it would be alone, none is left out, and the figures over all are right."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.support.sources import colored_source
from tests.support.training import interrupt_after, run_all, same_weights, train_epochs, weights_of
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.evaluate import evaluate, evaluate_seeds
from toolkit.recipes.recipe import Recipe
from toolkit.runs.folder import create_run, find_newest_finished_run, open_run
from toolkit.runs.seeds import begin_seeds, find_seeds, open_seeds, spread

pytestmark = pytest.mark.slow

SEEDS = 3


@pytest.fixture(scope="module")
def short() -> Recipe:
    """Two epochs on small crops of 200 images: about half a second."""
    return Recipe.from_dict(
        {
            "epochs": 2,
            "batch_size": 40,
            "data_augmentation": {"small_crop_size": 8, "small_crop_share": 1.0},
            "run": {"val_size": 50, "precision": "float32", "seed": 7},  # a seed that does not count
        }
    )


def train_rest(together, source, **options):
    for run in together.find_unfinished():
        train_epochs(run, source, resume=True, **options)
    return together.write_summary()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, short):
    """Three finished seeds, trained without interruption and without any test images; never changed by a test."""
    source = dataclasses.replace(colored_source(), test_images=None)
    together = begin_seeds(short, seeds=SEEDS, source=source, name="three", root=tmp_path_factory.mktemp("runs"))
    train_rest(together, source)
    return together


def without_times(summary):
    """What must repeat itself exactly: all but the clock's figures."""
    figures = {name: value for name, value in summary["figures"].items() if name != "training_seconds"}
    rows = [{name: value for name, value in row.items() if name != "training_seconds"} for row in summary["seeds"]]
    return summary | {"figures": figures, "seeds": rows}


def test_each_seed_is_what_that_seed_gives_alone(tmp_path, source, short, trained):
    alone, _ = run_all(short.replace({"run": {"seed": 1}}), source, tmp_path)
    run = trained.runs[1]
    assert run.read_recipe() == alone.read_recipe()
    assert same_weights(weights_of(run.last), weights_of(alone.last))
    assert {path.name for path in run.path.iterdir()} == {path.name for path in alone.path.iterdir()}
    assert not same_weights(weights_of(run.last), weights_of(trained.runs[0].last))


@pytest.mark.parametrize("values", [[0.9], [0.91, 0.912], [0.9156, 0.9163, 0.911, 0.9149, 0.917]])
def test_spread_against_numpy(values):
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found.min == np.min(values)
    assert found.n == len(values)
    if len(values) == 1:
        assert found.std is None
    else:
        assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-9)


def test_the_summary_says_what_the_runs_say(trained):
    summary = json.loads(trained.summary.read_text())
    singles = [run.read_summary() for run in trained.runs]
    assert summary["n"] == SEEDS
    assert [row["seed"] for row in summary["seeds"]] == [0, 1, 2]
    assert (summary["model"], summary["train_images"], summary["val_images"]) == ("resnet20", 150, 50)
    assert summary["data"] == singles[0]["data"]
    for name, of in (
        ("best_val_accuracy", lambda single: single["best"]["validation"]["accuracy"]),
        ("val_accuracy", lambda single: single["last"]["val_accuracy"]),
        ("train_accuracy", lambda single: single["last"]["train_accuracy"]),
        ("generalisation_gap", lambda single: single["last"]["train_accuracy"] - single["last"]["val_accuracy"]),
    ):
        values = np.array([of(single) for single in singles])
        assert [row[name] for row in summary["seeds"]] == pytest.approx(values.tolist())
        figures = summary["figures"][name]
        expected = {"mean": values.sum() / 3, "std": np.sqrt(((values - values.mean()) ** 2).sum() / 2)}
        assert figures == pytest.approx(expected | {"min": values.min(), "n": 3})


def test_what_differs_between_seeds_stands_with_each(tmp_path, source, short):
    """As where an interrupted training went on on another machine."""
    together = begin_seeds(short.replace({"epochs": 1}), seeds=2, source=source, name="two", root=tmp_path)
    train_rest(together, source)
    together.runs[1].write_summary(together.runs[1].read_summary() | {"device": "another machine"})
    summary = together.write_summary()
    assert "device" not in summary
    assert [row["device"] == "another machine" for row in summary["seeds"]] == [False, True]
    assert summary["model"] == "resnet20"


@pytest.mark.parametrize("steps", [1, 8, 14])  # of 8 a seed: in the first epoch, between two seeds, in a second epoch
def test_interrupted_and_gone_on_with_is_as_uninterrupted(tmp_path, source, short, trained, steps):
    together = begin_seeds(short, seeds=SEEDS, source=source, name="three", root=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_rest(together, source, on_progress=interrupt_after(steps))
    finished = {run.path.name: run.summary.stat().st_mtime_ns for run in together.runs if run.is_finished}
    assert len(finished) == steps // 8
    with pytest.raises(ToolkitError, match="these are unfinished: .*seed2"):
        together.write_summary()
    torch.manual_seed(4)
    again = begin_seeds(short, seeds=SEEDS, source=source, name="three", root=tmp_path)
    summary = train_rest(again, source)
    assert without_times(summary) == without_times(json.loads(trained.summary.read_text()))
    for run, whole in zip(again.runs, trained.runs, strict=True):
        assert same_weights(weights_of(run.last), weights_of(whole.last))
        assert same_weights(weights_of(run.best), weights_of(whole.best))
    assert {name: (again.path / name / "summary.json").stat().st_mtime_ns for name in finished} == finished


def test_more_seeds_may_be_asked_for_later_but_not_fewer(tmp_path, source, short):
    short = short.replace({"epochs": 1})
    train_rest(begin_seeds(short, seeds=1, source=source, name="x", root=tmp_path), source)
    together = begin_seeds(short, seeds=2, source=source, name="x", root=tmp_path)
    assert [run.path.name for run in together.find_unfinished()] == ["seed1"]
    assert train_rest(together, source)["n"] == 2
    with pytest.raises(UsageError, match="has 2 seeds, and none may be left out"):
        begin_seeds(short, seeds=1, source=source, name="x", root=tmp_path)


def test_a_changed_recipe_is_refused_and_named(tmp_path, source, short):
    begin_seeds(short, seeds=2, source=source, name="x", root=tmp_path)
    changed = short.replace({"epochs": 5, "data_augmentation": {"mixup_alpha": 0.0}})
    with pytest.raises(UsageError, match=r"seed0 has another recipe \(epochs was 2, now 5, mixup_alpha was"):
        begin_seeds(changed, seeds=2, source=source, name="x", root=tmp_path)
    begin_seeds(short.replace({"run": {"seed": 3}}), seeds=2, source=source, name="x", root=tmp_path)  # no change
    run = open_seeds(tmp_path / "x").runs[1]
    run.write_recipe(run.read_recipe().replace({"learning_rate": 0.01}))
    with pytest.raises(UsageError, match="seed1 has another recipe .learning_rate was 0.01, now 0.05"):
        begin_seeds(short, seeds=2, source=source, name="x", root=tmp_path)


def test_other_data_are_refused(tmp_path, source, short):
    together = begin_seeds(short, seeds=2, source=source, name="x", root=tmp_path)
    begin_seeds(short, seeds=2, source=colored_source(train=210), name="x", root=tmp_path)  # nothing is trained yet
    train_epochs(together.runs[0], source)
    with pytest.raises(ToolkitError, match="was trained on"):
        begin_seeds(short, seeds=2, source=colored_source(train=210), name="x", root=tmp_path)


@pytest.mark.parametrize(
    ("seeds", "name", "message"),
    [(0, "x", "from 1 to 1,000, not 0"), (10**9, "x", "to 1,000, not 10"), (2, "../x", "cannot name a run")],
)
def test_impossible_requests_make_nothing(tmp_path, source, short, seeds, name, message):
    with pytest.raises(UsageError, match=message):
        begin_seeds(short, seeds=seeds, source=source, name=name, root=tmp_path / "runs")
    assert not any(tmp_path.iterdir())


def test_a_run_by_itself_takes_no_seeds_and_seeds_are_no_run(tmp_path, source, short):
    create_run(short, stem="x", root=tmp_path)
    with pytest.raises(UsageError, match="is a single run"):
        begin_seeds(short, seeds=2, source=source, name="x", root=tmp_path)
    begin_seeds(short, seeds=2, source=source, name="y", root=tmp_path)
    with pytest.raises(UsageError, match="exists: choose another --name"):
        create_run(short, stem="y", name="y", root=tmp_path)
    with pytest.raises(ToolkitError, match="holds several seeds: name one of them"):
        open_run("y", root=tmp_path)
    with pytest.raises(ToolkitError, match="no run 'z'; the runs in .* are: x, y/seed0, y/seed1"):
        open_run("z", root=tmp_path)
    assert open_run("y/seed1", root=tmp_path).read_recipe().run.seed == 1


def test_seeds_are_found_by_path_and_by_name_and_the_newest_run_may_be_one(trained):
    root = trained.path.parent
    assert find_seeds("three", root=root) == find_seeds(str(trained.path), root=root) == trained
    assert find_seeds("three/seed0", root=root) is None
    assert find_seeds("nothing", root=root) is None
    assert find_newest_finished_run(root=root) == trained.runs[-1]


def test_evaluation_is_that_of_each_seed(source, trained):
    result = evaluate_seeds(trained, source=source, device="cpu")
    singles = [evaluate(run.best, source=source, device="cpu") for run in trained.runs]
    assert list(result.metrics) == singles
    values = np.array([single.correct / 50 for single in singles])
    written = json.loads(json.dumps(result.as_dict()))
    expected = {"mean": values.mean(), "std": values.std(ddof=1), "min": values.min(), "n": 3}
    assert written["figures"]["accuracy"] == pytest.approx(expected)
    assert [row["correct"] for row in written["seeds"]] == [single.correct for single in singles]
    assert [row["epoch"] for row in written["seeds"]] == [run.read_summary()["best"]["epoch"] for run in trained.runs]


def test_on_all_images_the_last_epoch_is_evaluated_and_nothing_is_said_of_validation(tmp_path, source, short):
    together = begin_seeds(short.replace({"run": {"val_size": 0}}), seeds=2, source=source, name="all", root=tmp_path)
    summary = train_rest(together, source)
    assert set(summary["figures"]) == {"train_accuracy", "train_loss", "training_seconds"}
    assert evaluate_seeds(together, source=source).epochs == (2, 2)


def test_evaluation_leaves_no_seed_out_and_takes_no_stranger(tmp_path, source, short):
    together = begin_seeds(short.replace({"epochs": 1}), seeds=2, source=source, name="x", root=tmp_path)
    train_epochs(together.runs[0], source)
    with pytest.raises(ToolkitError, match=r"of the 2 seeds .* these are unfinished: seed1\. .*--resume .*seed1"):
        evaluate_seeds(open_seeds(tmp_path / "x"), source=source)
    other = together.runs[1]
    other.write_recipe(other.read_recipe().replace({"dropout_rate": 0.1}))
    train_epochs(other, source)
    with pytest.raises(ToolkitError, match="seed1 has another recipe .*: undo"):
        evaluate_seeds(together, source=source)
