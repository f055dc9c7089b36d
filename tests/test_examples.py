"""The examples, run as a user runs them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_inference_predict import draw
from test_inference_session import saved, tiny_model

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


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
