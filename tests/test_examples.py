"""The examples, run as a user runs them."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support.onnx_models import draw, saved, tiny_model
from tests.support.pictures import write_colored_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
TINY = """
epochs = 2
batch_size = 128

[data_augmentation]
small_crop_size = 8
small_crop_share = 1.0

[run]
val_size = 400
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path, tiny_model())
    draw(tmp_path / "pictures/sunset.png", "red")
    draw(tmp_path / "pictures/more/sea.png", "blue")
    return tmp_path


def test_onnx_only(folder: Path) -> None:
    source = (EXAMPLES / "onnx_only.py").read_text()
    assert len(source.splitlines()) < 25
    assert "import toolkit" not in source
    assert "from toolkit" not in source
    command = [sys.executable, EXAMPLES / "onnx_only.py", "model.onnx", "pictures/sunset.png", "pictures/more/sea.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "pictures/sunset.png: airplane (25.0%)\npictures/more/sea.png: bird (33.3%)\n"


def test_batch_folder(folder: Path) -> None:
    (folder / "pictures/broken.png").write_bytes(b"no picture")
    command = [sys.executable, EXAMPLES / "batch_folder.py", "pictures", "out.csv", "model.onnx"]
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"]) for row in rows] == [
        ("pictures/broken.png", ""),
        ("pictures/sunset.png", "airplane"),
        ("pictures/more/sea.png", "bird"),
    ]
    assert "not a picture" in rows[0]["error"]


def test_train_export_predict(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "train_export_predict.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "epoch 8: loss" in done.stdout
    assert "verified: " in done.stdout
    assert "example/samples/heart-0001.png: heart" in done.stdout


def test_own_pictures(tmp_path: Path) -> None:
    write_colored_folder(tmp_path / "pets", {"train/cat": 8, "train/dog": 8, "test/cat": 3, "test/dog": 3})
    (tmp_path / "short.toml").write_text("epochs = 2\nbatch_size = 8\n[run]\nval_size = 0.2\n")
    command = [sys.executable, EXAMPLES / "own_pictures.py", "pets", "0.1", "short.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "Initial weights of 42 of 43 layers" in done.stdout
    assert "of 6 test pictures right; 95% interval" in done.stdout
    assert (tmp_path / "own/model.onnx").is_file()


@pytest.fixture
def design_claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("design_claims")


def test_design_claims(
    design_claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the drawn data; a second call trains nothing and finds the same."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    options = ["--recipe", "tiny.toml", "--data", "demo", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["x", *options, "--only", "resnet20", "--only", "SGD", "--only", "Adam"])
    design_claims.main()
    first, written = capsys.readouterr(), Path("claims/claims.json").read_text()
    assert Path("claims/claims.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path("claims/runs").iterdir()) == ["Adam", "resnet20"]  # SGD is resnet20's
    found = json.loads(written)
    assert found["variants"]["SGD"] == found["variants"]["resnet20"] != found["variants"]["Adam"]
    run = json.loads(Path("claims/runs/resnet20/seed0/summary.json").read_text())
    figures = found["variants"]["resnet20"]["figures"]
    assert figures["gap"]["mean"] == pytest.approx(100 * run["last"]["generalisation_gap"])
    assert figures["half-way"]["mean"] == pytest.approx(found["variants"]["resnet20"]["curve"][0])
    assert [claim["verdict"] for claim in found["claims"]] == ["not decided"] * 4  # one seed has no spread
    assert "SGD is better than Adam" in first.out
    assert "seed0: epoch 2" in first.err
    design_claims.main()
    again = capsys.readouterr()
    assert (again.out, again.err) == (first.out, "")
    assert Path("claims/claims.json").read_text() == written


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([90.0, 90.2, 90.1], [89.0, 89.1, 89.2], "holds"),
        ([89.0, 89.1, 89.2], [90.0, 90.2, 90.1], "does not hold"),
        ([90.0, 90.5, 89.5], [89.9, 89.9, 90.0], "not decided"),
        ([90.0], [80.0], "not decided"),
    ],
)
def test_a_claim_is_decided_only_outside_the_noise(
    design_claims: ModuleType, ours: list[float], theirs: list[float], verdict: str
) -> None:
    results = {
        name: {"seeds": [{"validation": value} for value in values]} for name, values in (("a", ours), ("b", theirs))
    }
    row = design_claims.judge(design_claims.Claim("a is better", "validation", "a", "b"), results)
    assert row["verdict"] == verdict
    assert row["value"]["mean"] == pytest.approx(sum(ours) / len(ours) - sum(theirs) / len(theirs))
    if row["noise"] is not None:  # half the width of the 95% interval, Student's t with two degrees of freedom
        differences = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
        assert row["noise"] == pytest.approx(4.303 * float(differences.std()) / 3**0.5, rel=1e-3)
