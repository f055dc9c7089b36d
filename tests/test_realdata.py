"""On the real CIFAR-10, where $CIFAR_DATA names it: an epoch of training, and the shipped model's gate."""

import os
from pathlib import Path

import pytest

from tests.support.sources import ROOT
from toolkit.data.dataset import find_data
from toolkit.deploy import verify
from toolkit.evaluation.evaluate import evaluate
from toolkit.recipes.recipe import load_recipe
from toolkit.runs.folder import create_run
from toolkit.training.trainer import EpochRecord, train

WEIGHTS = ROOT / "toolkit" / "weights"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CIFAR_DATA"), reason="$CIFAR_DATA is not set"),
]


def test_an_epoch_of_real_training_learns(tmp_path: Path) -> None:
    """On small crops alone, which is quicker; ten classes, so one in ten would be right by chance."""
    recipe = load_recipe("fast").replace(
        {"epochs": 1, "warmup_epochs": 0.2, "data_augmentation": {"small_crop_share": 1.0}}
    )
    run = create_run(recipe, stem="real", root=tmp_path)
    records: list[EpochRecord] = []
    train(recipe, source=find_data(), run=run, on_epoch=records.append)
    (record,) = records
    summary = run.read_summary()
    assert (summary["train_images"], summary["val_images"]) == (45_000, 5_000)
    assert record.val_accuracy is not None
    assert record.val_accuracy > 0.35
    assert record.train_loss < 1.9


def test_the_shipped_model_passes_the_gate() -> None:
    report = verify(WEIGHTS / "model.onnx", data=find_data(), checkpoint=WEIGHTS / "checkpoint.pt")
    assert report.passed
    assert report.figures.test_images == 10_000
    assert report.figures.precision == "fp32"


def test_the_shipped_checkpoint_is_right_as_often_as_the_model() -> None:
    metrics = evaluate(WEIGHTS / "checkpoint.pt", source=find_data())
    assert metrics.correct >= 9100
    assert metrics.correct == evaluate(WEIGHTS / "model.onnx", source=find_data()).correct
