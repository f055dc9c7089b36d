"""The comparison of calibrations: every way is tried, on validation images and never on the test set."""

import json
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from models import build_model
from results import choose_calibration
from results.choose_calibration import HEADER, compare, format_line, split_as_trained
from tests.support.deploy import CLASS_NAMES, blocky_images, randomize, tiny_model, torchvision_logits
from tests.support.sources import FixedSource
from toolkit.data.dataset import find_data, identify_data
from toolkit.data.images import Images
from toolkit.data.split import split_images
from toolkit.errors import ToolkitError
from toolkit.runs.checkpoint import Checkpoint, save_checkpoint

pytestmark = pytest.mark.slow


def checkpoint_for(source, *, model: str, val_size: int) -> Checkpoint:
    weights = randomize(build_model(model)).state_dict()
    recipe = {"run": {"val_size": val_size}}
    identity = identify_data(source.name, source.train())
    return Checkpoint(model, {}, source.class_names, recipe, identity, 3, 0.5, weights)


@pytest.fixture
def few_drawn_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.data.synthetic.TRAIN_COUNT", 300)


def test_every_calibration_is_evaluated_on_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_calibration, "CALIBRATION_METHODS", ("percentile",))
    with tiny_model():
        network = randomize(build_model("tiny"))
        images = blocky_images(400, seed=6)
        train = Images(images, torchvision_logits(network, images).argmax(1))
        source = FixedSource("blocks", None, CLASS_NAMES, train)  # no test images: reading them would fail
        checkpoint = checkpoint_for(source, model="tiny", val_size=100)
        float32, *others = compare(checkpoint, source, counts=(16, 32), draws=2)
        trained_on, unseen = split_as_trained(checkpoint, source)
    assert (len(trained_on), len(unseen)) == (300, 100)
    assert torch.equal(unseen.images, split_images(train, 100)[1].images)
    found = (float32.method, float32.accuracy, float32.labels_changed, float32.largest_logit_difference)
    assert found == ("none", 1, 0, 0)
    assert [(r.images, r.reduce_range, r.draw) for r in others] == list(product((16, 32), (True, False), (0, 1)))
    assert others[0].mean_logit_difference != others[1].mean_logit_difference  # draws select different images
    for result in others:
        assert result.validation_images == 100
        assert 0 < result.mean_logit_difference < result.largest_logit_difference
        assert 0.7 < result.accuracy <= 1
        assert result.labels_changed >= 100 - result.correct
        assert len(format_line(result)) == len(HEADER)


def test_a_run_on_all_images_is_refused() -> None:
    images = Images(blocky_images(20, seed=6), torch.arange(20) % 10)
    source = FixedSource("blocks", None, CLASS_NAMES, images)
    with tiny_model():
        checkpoint = checkpoint_for(source, model="tiny", val_size=0)
    with pytest.raises(ToolkitError, match="trained on all images"):
        next(compare(checkpoint, source))


def test_as_a_program(
    few_drawn_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, summary = tmp_path / "best.pt", tmp_path / "out.json"
    with tiny_model():
        save_checkpoint(checkpoint_for(find_data("demo"), model="tiny", val_size=100), path)
        arguments = [str(path), "--data", "demo", "--images", "8", "--draws", "1", "--json", str(summary)]
        monkeypatch.setattr(sys, "argv", ["choose_calibration.py", *arguments])
        choose_calibration.main()
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(summary.read_text())["results"]
    assert lines[0] == HEADER
    assert len(lines) - 1 == len(rows)
    methods = ["none", *(name for name in ("minmax", "entropy", "percentile") for _ in range(2))]
    assert [row["method"] for row in rows] == methods
    assert rows[0]["accuracy"] == rows[0]["correct"] / 100
