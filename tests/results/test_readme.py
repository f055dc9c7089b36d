"""The README and the model card: commands exist, figures are those of the JSON files in the repository.

`python results/measured.py` writes the figures anew.
"""

import re
import shlex

import pytest
import typer.main

import cli
from results.measured import BLOCK, README, RESULTS, WEIGHTS, card, measured, read
from tests.support.sources import ROOT
from toolkit.recipes.recipe import Recipe, load_recipe, parse_recipe
from toolkit.runs.checkpoint import load_checkpoint


def test_the_model_card_says_what_the_json_files_say():
    assert (WEIGHTS / "README.md").read_text() == card()


def test_measured_figures_are_those_of_the_json_files():
    match = BLOCK.search(README.read_text())
    assert match
    assert match[0] == f"<!-- measured:begin -->\n{measured()}<!-- measured:end -->"


def test_the_shipped_model_is_verified():
    export, evaluation = read(WEIGHTS / "export.json"), read(WEIGHTS / "evaluation.json")
    assert export["passed"]
    assert export["figures"]["reference_correct"] == evaluation["correct"]  # PyTorch's, of the same weights
    assert export["figures"]["test_correct"] == evaluation["correct"] >= 9100
    assert (WEIGHTS / "model.onnx").stat().st_size == export["figures"]["bytes"] < 1.3e6


def test_the_shipped_model_is_of_the_recipe_that_its_line_names():
    (preset,) = (line["preset"] for line in read(RESULTS / "presets.json") if "toolkit/weights" in line["runs"])
    shipped = load_checkpoint(WEIGHTS / "checkpoint.pt")
    assert Recipe.from_dict(shipped.recipe) == load_recipe(preset).replaced({"run": {"val_size": 0}})
    assert shipped.epoch == load_recipe(preset).epochs


def commands() -> list[str]:
    text = README.read_text()
    lines = re.findall(r"^    (cifar [^#\n]*)", text, re.MULTILINE)
    return [line.strip() for line in lines + re.findall(r"`(cifar [a-z]+ [^`]*)`", text)]


def test_there_are_exactly_two_set_up_lines():
    assert re.findall(r"^    (pip .*)", README.read_text(), re.MULTILINE) == [
        "pip install . && cifar demo",
        'pip install -e ".[test]" && pytest',
    ]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_the_command_line_takes(command, tmp_path, monkeypatch):
    words = shlex.split(command.replace("[WHAT]", "").replace("--help", "").replace("PATH...", "PATH"))[1:]
    group = typer.main.get_command(cli.app)
    name, *arguments = words
    parsed = group.commands[name].make_context(name, arguments)  # refuses what is not a valid call
    assert parsed.command.name == name


def test_every_command_of_the_command_line_is_in_the_readme():
    text = README.read_text()
    for name in typer.main.get_command(cli.app).commands:
        assert f"| `cifar {name}" in text, name


def test_the_recipe_of_the_readme_is_the_reference_with_every_key():
    values = parse_recipe(re.search(r"(?s)```toml\n(.*?)```", README.read_text())[1], where="README")
    assert Recipe.from_dict(values) == Recipe()
    defaults = Recipe().as_dict()
    assert values.keys() == defaults.keys()
    assert all(values[table].keys() == defaults[table].keys() for table in ("data_augmentation", "run"))


def test_files_that_the_architecture_names_exist():
    section = README.read_text().split("## How it is built")[1].split("From Python:")[0]
    names = set(re.findall(r"[\w/]+\.py", section))
    present = {path.name for path in ROOT.rglob("*.py")}
    assert names
    assert {name.split("/")[-1] for name in names} <= present
