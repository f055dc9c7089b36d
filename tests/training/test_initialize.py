"""Initial weights: the layers that fit are layers, validation images stay unseen, and a run resumes exactly."""

from dataclasses import replace

import pytest
import torch

from models import build_model
from tests.support.sources import colored_source
from tests.support.training import resumed_exactly, run_all, same_weights, train_epochs, weights_of
from toolkit.data.channels import ChannelStatistics
from toolkit.errors import ToolkitError
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import SHIPPED_CHECKPOINT, identify_checkpoint, load_checkpoint, save_checkpoint
from toolkit.runs.folder import create_run
from toolkit.runs.seeds import begin_seeds
from toolkit.training.initialize import load_fitting_layers, load_initial

STATISTICS = ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(SHIPPED_CHECKPOINT)


@pytest.fixture
def recipe():
    return Recipe.from_dict(
        {"epochs": 2, "batch_size": 50, "learning_rate": 0.001, "run": {"val_size": 20, "precision": "float32"}}
    )


def test_the_shipped_model_and_runs_by_name(shipped, recipe, tmp_path):
    assert load_initial("shipped", root=tmp_path).sha256 == shipped.sha256
    save_checkpoint(shipped, tmp_path / "any.pt")
    assert identify_checkpoint(load_initial(str(tmp_path / "any.pt"))) == identify_checkpoint(shipped)
    with pytest.raises(ToolkitError, match="no run 'missing'"):
        load_initial("missing", root=tmp_path)


def test_the_same_classes_take_every_layer(shipped):
    network = build_model("resnet20")
    layers = load_fitting_layers(network, shipped, shipped.class_names)
    assert layers.new == ()
    assert same_weights(network.state_dict(), shipped.weights)
    assert layers.describe(shipped) == "Initial weights of 43 of 43 layers from a resnet20 trained on cifar10"


@pytest.mark.parametrize("names", [tuple("abcdefghij"), ("a", "b")])
def test_other_classes_get_a_new_last_layer(shipped, names):
    network = build_model("resnet20", num_classes=len(names))
    before = network.linear.weight.clone()
    layers = load_fitting_layers(network, shipped, names)
    assert layers.new == ("linear",)
    assert torch.equal(network.linear.weight, before)
    assert torch.equal(network.conv.weight, shipped.weights["conv.weight"])
    assert layers.describe(shipped).endswith("42 of 43 layers from a resnet20 trained on cifar10; new: linear")


def test_another_network_takes_what_fits_or_nothing(shipped):
    layers = load_fitting_layers(build_model("resnet32"), shipped, shipped.class_names)
    assert "stage3.2.conv2" in layers.loaded
    assert "stage1.3.conv1" in layers.new
    with pytest.raises(ToolkitError, match="no layer of the resnet20 in the initial checkpoint fits"):
        load_fitting_layers(build_model("m6"), replace(shipped, class_names=("a",) * 10), ("b",) * 10)


def test_a_run_starts_from_the_weights_and_keeps_their_statistics(shipped, recipe, tmp_path):
    source, notes = colored_source(), []
    init = replace(shipped, statistics=STATISTICS)
    run = create_run(recipe, stem="run", root=tmp_path, init=init)
    train_epochs(run, source, note=notes.append)
    summary, best = run.read_summary(), load_checkpoint(run.best)
    assert "Initial weights of 42 of 43 layers from a resnet20 trained on cifar10; new: linear" in notes
    assert summary["init"] == best.init == identify_checkpoint(init)
    assert best.statistics == STATISTICS
    assert summary["channels"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    change = (best.weights["conv.weight"] - shipped.weights["conv.weight"]).abs().max()
    assert 0 < change < 0.1


def test_without_initial_weights_the_statistics_are_those_of_the_training_images(recipe, tmp_path):
    source = colored_source()
    run, _ = run_all(recipe, source, tmp_path)
    pixels = source.train().images.double() / 255
    mean = load_checkpoint(run.best).statistics.mean
    assert mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=0.02)  # less the 20 images held out


@pytest.mark.slow
def test_resumes_exactly(shipped, recipe, tmp_path):
    source = colored_source()
    whole = create_run(recipe, stem="whole", root=tmp_path, init=shipped)
    records = train_epochs(whole, source)
    part = create_run(recipe, stem="part", root=tmp_path, init=shipped)
    train_epochs(part, source, epochs=1)
    resumed_exactly(part, source, whole=whole, records=records)


def test_a_run_that_was_stopped_before_its_first_checkpoint_still_starts_from_the_weights(shipped, recipe, tmp_path):
    source = colored_source()
    first, second = (create_run(recipe, stem="run", root=tmp_path, init=shipped) for _ in range(2))
    train_epochs(first, source, epochs=1)
    train_epochs(second, source, epochs=1, resume=True)
    assert same_weights(weights_of(first.last), weights_of(second.last))


def test_other_initial_weights_are_rejected_when_resuming(shipped, recipe, tmp_path):
    source = colored_source()
    run = create_run(recipe, stem="run", root=tmp_path, init=shipped)
    train_epochs(run, source, epochs=1)
    run.init.unlink()
    with pytest.raises(ToolkitError, match="init.pt does not hold the weights that the run began with"):
        train_epochs(run, source, resume=True)


def test_seeds_start_from_the_same_weights(shipped, recipe, tmp_path):
    source = colored_source()
    seeds = begin_seeds(recipe, seeds=2, source=source, name="all", root=tmp_path, init=shipped)
    assert all(run.init.is_file() for run in seeds.runs)
    begin_seeds(recipe, seeds=2, source=source, name="all", root=tmp_path, init=shipped)
    with pytest.raises(ToolkitError, match="seed0 starts from other weights: use the same --init"):
        begin_seeds(recipe, seeds=2, source=source, name="all", root=tmp_path)


def test_weights_that_saw_the_validation_images_are_rejected(recipe, tmp_path):
    source = colored_source()
    run, _ = run_all(recipe, source, tmp_path)
    init = load_checkpoint(run.best)
    again = create_run(recipe.replace({"run": {"val_size": 30}}), stem="again", root=tmp_path, init=init)
    with pytest.raises(ToolkitError, match="with a val_size of 20, and this run holds out 30.*Use --val-size 20"):
        train_epochs(again, source)
