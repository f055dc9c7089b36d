"""The comparison of calibrations: every way is tried, on images held out, and never on the test set."""

import json
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from models import build_model
from results.choose_calibration import HEADER, compare, held_out, line, main
from tests.support.deploy import CLASS_NAMES, blocky_images, randomise, tiny_model, torchvision_logits
from tests.support.sources import FixedSource
from toolkit.data.dataset import data_identity, find_data
from toolkit.data.images import Images
from toolkit.data.split import split_images
from toolkit.errors import ToolkitError
from toolkit.runs.checkpoint import Checkpoint, save_checkpoint


def checkpoint_for(source, *, model: str, val_size: int) -> Checkpoint:
    weights = randomise(build_model(model)).state_dict()
    recipe = {"run": {"val_size": val_size}}
    identity = data_identity(source.name, source.train())
    return Checkpoint(model, {}, source.class_names, recipe, identity, 3, 0.5, weights)


def test_every_way_is_judged_on_the_images_held_out() -> None:
    with tiny_model():
        network = randomise(build_model("tiny"))
        images = blocky_images(400, seed=6)
        train = Images(images, torchvision_logits(network, images).argmax(1))
        source = FixedSource("blocks", None, CLASS_NAMES, train)  # without test images: reading them would fail
        checkpoint = checkpoint_for(source, model="tiny", val_size=100)
        results = list(compare(checkpoint, source, counts=(16, 32), draws=2))
        trained_on, unseen = held_out(checkpoint, source)
    assert (len(trained_on), len(unseen)) == (300, 100)
    assert torch.equal(unseen.images, split_images(train, 100)[1].images)
    exact, *others = results
    assert (exact.method, exact.accuracy, exact.labels_changed, exact.largest_logit_difference) == ("none", 1, 0, 0)
    methods = ("minmax", "entropy", "percentile")
    assert [(r.method, r.images, r.reduce_range, r.draw) for r in others] == list(
        product(methods, (16, 32), (True, False), (0, 1))
    )
    first, second = others[:2]
    assert first.mean_logit_difference != second.mean_logit_difference  # each draw has images of its own
    for result in others:
        assert result.validation_images == 100
        assert 0 < result.mean_logit_difference < result.largest_logit_difference
        assert 0.7 < result.accuracy <= 1
        assert result.labels_changed >= 100 - result.correct
        assert len(line(result)) == len(HEADER)


def test_a_run_on_all_images_is_refused() -> None:
    source = find_data("demo")
    with tiny_model():
        checkpoint = checkpoint_for(source, model="tiny", val_size=0)
    with pytest.raises(ToolkitError, match="trained on all images"):
        next(compare(checkpoint, source))


def test_as_a_program_on_the_drawn_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, summary = tmp_path / "best.pt", tmp_path / "out.json"
    with tiny_model():
        save_checkpoint(checkpoint_for(find_data("demo"), model="tiny", val_size=100), path)
        arguments = [str(path), "--data", "demo", "--images", "8", "--draws", "1", "--json", str(summary)]
        monkeypatch.setattr(sys, "argv", ["choose_calibration.py", *arguments])
        main()
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(summary.read_text())["results"]
    assert lines[0] == HEADER
    assert len(rows) == len(lines) - 1 == 7
    assert rows[0]["accuracy"] == rows[0]["correct"] / 100
