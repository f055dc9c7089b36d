"""The README and the model card: commands exist, figures are those of the JSON files in the repository.

`python tests/test_readme.py` writes the figures anew.
"""

import hashlib
import json
import re
import shlex

import pytest
import typer.main
from conftest import ROOT

import cli
from toolkit.training.recipe import Recipe, parse_recipe

README = ROOT / "README.md"
WEIGHTS = ROOT / "toolkit" / "weights"
BLOCK = re.compile(r"(?s)(<!-- measured:begin -->\n).*?(<!-- measured:end -->)")


def read(name: str) -> dict:
    return json.loads((WEIGHTS / name).read_text())


def measured() -> str:
    """The README's section on what was measured, from the JSON files beside the shipped model."""
    run, evaluation, export = read("summary.json"), read("evaluation.json"), read("export.json")
    figures = export["figures"]
    minutes = run["training_seconds"] / 60
    libraries = ", ".join(f"{name} {version}" for name, version in run["libraries"].items() if name != "cifar")
    classes = " ".join(f"{name} {100 * value:.1f}," for name, value in evaluation["per_class_accuracy"].items())
    return f"""The shipped model: `{run["model"]}`, seed {run["seed"]}, recipe `fast` on all {run["train_images"]:,}
training images, last of {run["epochs"]} epochs. One run, so no spread is given; more seeds: not measured.

| | |
|---|---|
| test accuracy | **{evaluation["accuracy"]:.2%}** ({evaluation["correct"]:,} of {evaluation["images"]:,}) |
| training accuracy, without augmentation | {run["last"]["train_accuracy"]:.2%} |
| calibration error, 15 bins | {evaluation["calibration_error"]:.4f} |
| largest difference of a logit, ONNX Runtime to PyTorch | {figures["max_logit_difference"]:.1e} |
| labels that differ | {figures["differing_labels"]} |
| size of the ONNX file | {figures["bytes"]:,} bytes |
| time to train | {minutes:.0f} minutes |

By class, %: {classes.rstrip(",")}.
Hardware: {run["device"]} (one for the first 46 epochs), shared with other work; {run["precision"]}; {libraries}.
Commands: `cifar train --recipe fast --val-size 0` does what was done here: `toolkit.training.train` was called with that
recipe, interrupted, and finished by `cifar train --resume RUN`; then `cifar export model.onnx`, `cifar evaluate model.onnx`.
Their JSON: `toolkit/weights/`. A whole run of `reference`, `fast` on idle cores, and anything on a GPU: not measured.
"""


def card() -> str:
    """The model card, from the same files."""
    run, evaluation, export = read("summary.json"), read("evaluation.json"), read("export.json")
    rows = "\n".join(f"| {name} | {value:.2%} |" for name, value in evaluation["per_class_accuracy"].items())
    checkpoint = hashlib.sha256((WEIGHTS / "checkpoint.pt").read_bytes()).hexdigest()
    return f"""# Model card: the shipped `{run["model"]}`

`model.onnx` names what is in a picture: one of the ten classes of CIFAR-10. `checkpoint.pt` holds the same weights for
PyTorch. The training was begun by a call of `toolkit.training.train` with what `cifar train --recipe fast --val-size 0`
stands for, interrupted after 46 epochs and finished by `cifar train --resume RUN`; the file was made by `cifar export`.

- **Architecture**: ResNet-20 with 1x1 convolutions in the shortcuts, {run["parameters"]:,} parameters.
- **Recipe**: the preset `fast`, {run["epochs"]} epochs, seed {run["seed"]}; it stands in full in the ONNX file's metadata.
- **Data**: all {run["train_images"]:,} training images of CIFAR-10 (Krizhevsky, 2009); none held out, last epoch kept.
- **Test accuracy**: {evaluation["accuracy"]:.2%} ({evaluation["correct"]:,} of {evaluation["images"]:,} images), in PyTorch and in ONNX Runtime.
  It chose nothing here: the small crops were chosen on validation images. Learning rate and weight decay were taken over
  from earlier trials whose test accuracy was known.
- **Calibration**: expected calibration error {evaluation["calibration_error"]:.4f} (15 bins), cross-entropy {evaluation["loss"]:.4f} nats.
- **Parity**: no logit differs from PyTorch's by more than {export["figures"]["max_logit_difference"]:.1e}; labels that differ: {export["figures"]["differing_labels"]}.
- **Checksums** (SHA-256): `model.onnx` {export["figures"]["sha256"]},
  `checkpoint.pt` {checkpoint}.

| class | test accuracy |
|---|---|
{rows}

**Intended use**: a reference for training, exporting and verifying such a network, and a first model to try. **Limits**:
any picture at all gets one of the ten classes, with a probability that says nothing about pictures unlike CIFAR-10's.
Pictures are seen at 32x32 pixels. CIFAR-10's photographs and labels have the biases of their sources. It has not been
tested against deliberate disturbance, nor for any use in which a mistake does harm.
"""


def test_the_model_card_says_what_the_json_files_say():
    assert (WEIGHTS / "README.md").read_text() == card()


def test_measured_figures_are_those_of_the_json_files():
    match = BLOCK.search(README.read_text())
    assert match
    assert match[0] == f"<!-- measured:begin -->\n{measured()}<!-- measured:end -->"


def test_the_shipped_model_is_verified():
    export, evaluation = read("export.json"), read("evaluation.json")
    assert export["passed"]
    assert export["figures"]["test_correct"] == evaluation["correct"] >= 9100
    assert (WEIGHTS / "model.onnx").stat().st_size == export["figures"]["bytes"] < 1.3e6


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
    words = shlex.split(command.replace("[FILE]", "").replace("--help", "").replace("PATH...", "PATH"))[1:]
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


if __name__ == "__main__":
    (WEIGHTS / "README.md").write_text(card())
    README.write_text(BLOCK.sub(lambda match: match[1] + measured() + match[2], README.read_text()))
