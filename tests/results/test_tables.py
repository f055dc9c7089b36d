"""results/: the pages are those that write_tables.py writes, and the records behind them are consistent."""

import re

import pytest

from results.write_tables import RESULTS, ROOT, WEIGHTS, flatten, pages, read, read_benchmark, speed_ratios, trial_row
from toolkit.recipes.recipe import Recipe, load_recipe, preset_names, recipe_keys
from toolkit.runs.checkpoint import load_checkpoint


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_up_to_date(path):
    assert path.read_text(encoding="utf-8") == pages()[path], "run python -m results.write_tables"


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "path", sorted([*RESULTS.rglob("*.json"), *WEIGHTS.glob("*.json")]), ids=lambda path: str(path.relative_to(ROOT))
)
def test_records_hold_no_absolute_path(path):
    assert not re.search(r'"(/|[A-Za-z]:\\\\)', path.read_text(encoding="utf-8")), "name files relative to the project"


def test_recipes_page_has_every_key_and_preset():
    text = pages()[RESULTS / "recipes.md"]
    assert all(f"\n| `{key.name}` | " in text for key in recipe_keys())
    assert all(f" `{name}` |" in text for name in preset_names())


def test_trials_are_valid_recipe_changes():
    trials = read(RESULTS / "trials.json")
    for trial in trials:
        assert trial["what"]
        assert trial["decision"]
        if "speed" not in trial:
            Recipe().replace(trial["changes"])
            assert trial["base"] in (None, *preset_names(), *(other["what"] for other in trials))
            assert all(0 < accuracy < 1 for accuracy in trial["val_accuracy"])
            assert trial["seeds"] is None or len(trial["seeds"]) == len(trial["val_accuracy"])


def test_a_trial_of_several_seeds_has_a_mean_and_a_spread():
    trial = {
        "what": "no mixup",
        "base": "fast",
        "changes": {"epochs": 2, "data_augmentation": {"mixup_alpha": 0.0}},
        "epochs": 2,
        "seeds": [0, 1],
        "val_accuracy": [0.9, 0.92],
        "decision": "kept",
    }
    changes = "`fast` with `epochs = 2`, `mixup_alpha = 0.0`"
    assert trial_row(trial, {}) == ["no mixup", changes, "2", "91.00% (std 1.41%)", "2", "kept"]
    assert flatten(trial["changes"]) == {"epochs": 2, "mixup_alpha": 0.0}


def test_speed_of_a_trial_is_that_of_the_benchmark():
    speeds = {
        (result.side.name, timing.batch_size): timing.images_per_second
        for result in read_benchmark("bench-train.json").results
        for timing in result.timings
    }
    ratios = speed_ratios("bench-train.json", tried="compiled", base="eager")
    assert len(ratios) == 6
    assert speeds["compiled, bfloat16", 32] / speeds["eager, bfloat16", 32] == min(ratios)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("limits/*.json")) + sorted(RESULTS.glob("bench-*.json")), ids=str)
def test_recorded_ratios_and_medians_follow_from_the_rounds(path):
    for result in read_benchmark(str(path.relative_to(RESULTS))).results:
        for timing in result.timings:
            assert sorted(timing.rounds)[len(timing.rounds) // 2] == timing.images_per_second
            assert timing.ratio is not None


def test_the_shipped_model_is_verified():
    export, evaluation = read(WEIGHTS / "export.json"), read(WEIGHTS / "evaluation.json")
    assert export["passed"]
    assert export["figures"]["reference_correct"] == evaluation["correct"]  # PyTorch's, of the same weights
    assert export["figures"]["test_correct"] == evaluation["correct"] >= 9100
    assert (WEIGHTS / "model.onnx").stat().st_size == export["figures"]["bytes"] < 1.3e6


def test_the_shipped_model_has_the_recipe_of_its_preset():
    (preset,) = (line["preset"] for line in read(RESULTS / "presets.json") if "toolkit/weights" in line["runs"])
    shipped = load_checkpoint(WEIGHTS / "checkpoint.pt")
    assert Recipe.from_dict(shipped.recipe) == load_recipe(preset).replace({"run": {"val_size": 0}})
    assert shipped.epoch == load_recipe(preset).epochs


def test_the_runs_of_best_have_one_teacher_by_the_recipe_of_the_preset_teacher():
    (line,) = (line for line in read(RESULTS / "presets.json") if line["preset"] == "best")
    teachers = [read(ROOT / run / "summary.json")["teacher"] for run in line["runs"]]
    assert all(teacher == teachers[0] for teacher in teachers)
    assert Recipe.from_dict(teachers[0]["recipe"]) == load_recipe("teacher").replace({"run": {"val_size": 0}})
