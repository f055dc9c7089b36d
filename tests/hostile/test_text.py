"""Text from files is shown through one function: names with escapes, line ends, reordering or formulas stay text."""

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.onnx_models import saved, tiny_model
from tests.support.sources import Done
from toolkit.command_line import print_result
from toolkit.data.dataset import DataStatus
from toolkit.data.overview import DataOverview
from toolkit.display import TrainingDisplay, data_lines, metrics_lines, run_lines, seeds_lines
from toolkit.evaluation.metrics import Metrics, measure
from toolkit.evaluation.plots import format_label, plot_confusion, plot_curves, plot_predictions
from toolkit.files import escape
from toolkit.inference import Prediction
from toolkit.recipes.recipe import Recipe

pytestmark = pytest.mark.hostile

Cifar = Callable[..., Done]

NAMES = [
    "\x1b]52;c;eA==\x07",  # writes the clipboard
    "\x1b[2J\x1b[31mred",
    "a\r\nforged  99.00%",
    "\u202egnp.exe",
    os.fsdecode(b"\xff\xfe"),
    "[bold]x[/nothing]",  # markup of rich
    "$\\frac{$ $x^$",  # formulas of Matplotlib
    "\\$x$",
    "_hidden",
    "x" * 200,
    "=cmd|' /C calc'!A0",
]


def is_clean(text: str) -> bool:
    """Lines without control characters or lone surrogates."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{name.replace('/', ':')}.png" for name in NAMES]
    for path in paths:
        with path.open("wb") as file:
            Image.new("RGB", (32, 32), "red").save(file, "PNG")
    (folder / f"bad{NAMES[1]}.png").write_bytes(b"no picture")
    return paths


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl"])
def test_names_of_pictures_in_every_format(form: str, pictures: list[Path], cifar: Cifar, tmp_path: Path) -> None:
    model = saved(tmp_path, tiny_model())
    done: Done = cifar("predict", pictures[0].parent, "--model", model, "--provider", "cpu", "--format", form)
    assert done.returncode == 1  # of the bad one
    assert is_clean(done.stderr)
    assert r"bad\x1b[2J\x1b[31mred.png: not a picture" in done.stderr
    assert is_clean(done.stdout.replace("\r\n", "\n"))  # lines of CSV
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert sorted(row["path"] for row in rows) == sorted(escape(path) for path in pictures)
    if form == "json":
        names = {entry["path"] for entry in json.loads(done.stdout)}
        assert str(pictures[0]) in names  # whole: JSON can hold any text
    if form == "table":
        assert len(done.stdout.splitlines()) == len(NAMES)


def test_names_in_pictures_are_no_formulas(pictures: list[Path], tmp_path: Path) -> None:
    names = tuple(path.stem for path in pictures)
    predictions = [
        Prediction(str(path), name, 0, 1.0, ((name, 1.0),)) for path, name in zip(pictures, names, strict=True)
    ]
    plot_predictions(predictions, tmp_path / "predictions.png")
    for count in (len(names), 30):  # as a matrix, and as pairs
        plot_confusion(metrics_of((*names, *map(str, range(30)))[:count]), tmp_path / "confusion.png", title=names[6])
    keys = ("learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second")
    plot_curves([{"epoch": 1, **dict.fromkeys(keys, 0.5)}], tmp_path / "curves.png", title=names[6])
    assert len(list(tmp_path.glob("*.png"))) == 3


def metrics_of(names: tuple[str, ...]) -> Metrics:
    classes = len(names)
    return measure(torch.eye(classes).roll(1, 0), torch.arange(classes), names)


def test_a_label_keeps_what_can_be_printed() -> None:
    assert format_label("é 中 ☃") == "é 中 ☃"
    assert format_label("$5 \x1b") == r"\$5 \x1b"
    assert len(format_label("x" * 10**6)) == 40


@pytest.mark.parametrize("name", NAMES)
def test_results_on_the_terminal(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = Path("runs") / name
    best = {"epoch": 1, "validation": None}
    last = {"train_accuracy": 0.5}
    run = {"best": best, "last": last, "model": name, "parameters": 1, "epochs": 1, "training_seconds": 1.0}
    seed = {"seed": name, "train_accuracy": 0.5, "training_seconds": 1.0}
    figures = {"train_accuracy": {"mean": 0.5, "std": None, "min": 0.5, "n": 1}}
    seeds = {"n": 1, "model": name, "parameters": 1, "figures": figures, "seeds": [seed]}
    for text in (
        run_lines(path, {**run, "device": name}),
        seeds_lines(path, seeds),
        metrics_lines(metrics_of((name, "other"))),
        metrics_lines(metrics_of((name, *map(str, range(40))))),
    ):
        assert is_clean(text)
        print_result({"name": name}, lambda text=text: text, as_json=False)
    print_result({"name": name}, lambda: name, as_json=False)
    print_result({"name": name}, lambda: name, as_json=True)
    with TrainingDisplay(Recipe()) as shown:
        shown.note(f"Using {path}")
    printed = capfd.readouterr()
    assert is_clean(printed.out)
    assert is_clean(printed.err)


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_data(name: str, tmp_path: Path) -> None:
    status = DataStatus(name, name, tmp_path / name, {name: "ok"}, train_count=None, test_count=None)
    for files in ({name: "ok"}, {name: "missing"}, {}):
        assert is_clean(data_lines(DataOverview(None, replace(status, files=files))))
