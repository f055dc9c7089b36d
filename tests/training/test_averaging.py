"""The moving average of the weights: the textbook's, in every kind of step, and exact across a resumed run."""

import copy

import pytest
import torch

from tests.support.training import (
    FakeGraphs,
    captured,
    losses_of,
    make_step,
    resumed_exactly,
    run_all,
    same_weights,
    train_epochs,
    weights_of,
)
from toolkit.data.split import split_images
from toolkit.evaluation.metrics import compute_logits, measure
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import create_run
from toolkit.training.averaging import WeightAverage, decay_of_step


def averaging_step(decay=0.9, **options):
    step = make_step(**options)
    step.average = WeightAverage(step.network, decay)
    return step


def test_the_decay_warms_up():
    assert [decay_of_step(0.3, step) for step in range(4)] == [1 / 10, 2 / 11, 3 / 12, 0.3]


def test_against_a_plain_loop_over_the_weights():
    step = averaging_step()
    expected = copy.deepcopy(step.network.state_dict())
    torch.manual_seed(1)
    for number in range(6):
        step(torch.randint(0, 40, (8,)), 0.1)
        decay = min(0.9, (1 + number) / (10 + number))
        for name, value in step.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
    averages = step.average.network.state_dict()
    assert averages.keys() == expected.keys()
    for name, value in averages.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, step.network.state_dict()[name]) == (not value.is_floating_point())


def test_averaging_changes_nothing_in_the_training_itself():
    plain, averaged = make_step(), averaging_step()
    assert losses_of(plain) == losses_of(averaged)
    assert same_weights(plain.network.state_dict(), averaged.network.state_dict())


def test_captured_steps_average_as_eager_ones_do():
    eager, replayed = averaging_step(), captured(averaging_step(), FakeGraphs())
    losses_of(eager), losses_of(replayed)
    assert replayed._captured.recorder.replays > 0
    assert same_weights(eager.average.network.state_dict(), replayed.average.network.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_captured_steps_average_as_eager_ones_do():
    notes = []
    eager = averaging_step(device="cuda")
    graph = averaging_step(device="cuda", mode="graph", note=notes.append)
    losses_of(eager), losses_of(graph)
    assert notes == []
    for a, b in zip(eager.average.network.parameters(), graph.average.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_validation_and_both_checkpoints_are_of_the_averages(tmp_path, source, recipe):
    run, records = run_all(recipe.replace({"ema_decay": 0.5}), source, tmp_path)
    last = load_checkpoint(run.last)
    assert not same_weights(last.weights, last.training["weights"])
    _, held_out = split_images(source.train(), 20)
    logits = compute_logits(last.network(), held_out.images, statistics=last.statistics)
    assert measure(logits, held_out.labels, source.class_names).accuracy == records[-1].val_accuracy
    assert run.read_summary()["last"]["val_accuracy"] == records[-1].val_accuracy
    best = load_checkpoint(run.best)
    assert best.training is None
    if best.epoch == last.epoch:
        assert same_weights(best.weights, last.weights)
    plain, plain_records = run_all(recipe, source, tmp_path)
    assert same_weights(last.training["weights"], weights_of(plain.last))  # the training itself is the same
    assert [record.train_loss for record in records] == [record.train_loss for record in plain_records]


@pytest.mark.parametrize("boundary", [0, 2])
def test_resume_is_exact(tmp_path, source, recipe, boundary):
    recipe = recipe.replace({"ema_decay": 0.9})
    whole, records = run_all(recipe, source, tmp_path)
    run = create_run(recipe, stem="broken", root=tmp_path)
    if boundary:
        train_epochs(run, source, boundary)
    assert resumed_exactly(run, source, whole=whole, records=records) == 3 - boundary
    states = [load_checkpoint(path).training for path in (run.last, whole.last)]
    assert same_weights(states[0]["weights"], states[1]["weights"])
    assert states[0]["averaged_steps"] == states[1]["averaged_steps"] == 3 * 6


def test_without_averaging_a_checkpoint_holds_what_it_always_held(tmp_path, source, recipe):
    run, _ = run_all(recipe.replace({"epochs": 1}), source, tmp_path)
    values = torch.load(run.last, weights_only=True)
    assert set(values) == {
        "format", "model", "model_args", "class_names", "recipe", "data", "epoch", "val_accuracy", "weights",
        "training", "channels",
    }  # fmt: skip
    assert set(values["training"]) == {"optimizer", "seconds", "precision"}


def test_the_average_keeps_the_layout_and_asks_for_no_gradients():
    average = averaging_step().average
    assert average.network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.requires_grad for p in average.network.parameters())
    assert not average.network.training
    assert average.network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
