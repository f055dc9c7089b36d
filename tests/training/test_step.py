"""Eager and captured steps, and the check that rejects captures which differ from the eager step."""

import copy

import pytest
import torch

from tests.support.training import FakeGraphs, captured, losses_of, make_step
from toolkit.errors import UsageError
from toolkit.runs.folder import create_run
from toolkit.training.cuda_graph import WARM_UP_STEPS
from toolkit.training.step import choose_mode
from toolkit.training.trainer import train

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CHECKS = 2  # replays and eager steps that the check of one captured graph makes


def test_captured_steps_give_the_eager_losses_and_warm_up_counts_as_training():
    graphs = FakeGraphs()
    expected = losses_of(make_step())
    assert losses_of(captured(make_step(), graphs)) == expected
    assert expected[0] != expected[-1]
    assert (graphs.eager_steps, graphs.captures) == (WARM_UP_STEPS + CHECKS, 1)
    assert graphs.replays == 6 - WARM_UP_STEPS + CHECKS


def test_one_capture_per_crop_size_and_a_partial_batch_runs_eagerly():
    graphs = FakeGraphs()
    step = captured(make_step(), graphs)
    for crop_size in (24, 32, 24, 32):
        losses_of(step, crop_size=crop_size)
    assert (graphs.captures, graphs.eager_steps) == (2, 2 * (WARM_UP_STEPS + CHECKS))
    assert set(step._captured.replays) == {24, 32}
    losses_of(step, steps=2, size=5)
    assert (graphs.captures, graphs.eager_steps) == (2, 2 * (WARM_UP_STEPS + CHECKS) + 2)


def test_every_replay_draws_anew_and_uses_the_rate_of_its_step():
    step = captured(make_step(augmentation={"mixup_alpha": 0.2}), FakeGraphs())
    batch = torch.arange(8)
    for _ in range(WARM_UP_STEPS + 1):
        step(batch, 0.0)
    step.take_sums()
    losses = []
    for _ in range(4):
        step(batch, 0.0)  # the weights stay: what differs is augmentation
        losses.append(step.take_sums()[0])
    assert len(set(losses)) == 4
    before = copy.deepcopy(step.network.state_dict())
    step(batch, 0.1)
    assert not torch.equal(before["0.weight"], step.network.state_dict()["0.weight"])


def test_steps_are_eager_where_capturing_fails_with_one_note():
    notes, graphs = [], FakeGraphs(fails=True)
    step = captured(make_step(), graphs, notes)
    assert losses_of(step) == losses_of(make_step())
    assert (graphs.captures, graphs.eager_steps, step.mode) == (1, 6, "eager")
    assert notes == [
        "steps run eagerly, one kernel at a time: they cannot be captured here "
        "(operation not permitted when stream is capturing)"
    ]


def stale_batch(step):
    return FakeGraphs(before_replay=lambda: step._captured.indices.fill_(3))


def stale_learning_rate(step):
    return FakeGraphs(before_replay=lambda: step._set_learning_rate(0.1))


def frozen_random_numbers(step):
    return FakeGraphs(before_replay=lambda: torch.manual_seed(7))


def skipped_update(step):
    return FakeGraphs(repeats=0)


def repeated_update(step):
    return FakeGraphs(repeats=2)


def changed_running_mean(step):
    return FakeGraphs(before_replay=lambda: step.network[1].running_mean.add_(1))


CHEATS = [
    stale_batch,
    stale_learning_rate,
    frozen_random_numbers,
    skipped_update,
    repeated_update,
    changed_running_mean,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Muon"])
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_graph_that_differs_from_the_eager_step_is_not_used(cheat, optimizer, dtype):
    notes, options = [], {"recipe": {"optimizer": optimizer}, "augmentation": {"mixup_alpha": 0.2}, "dtype": dtype}
    step = make_step(**options)
    losses = losses_of(captured(step, cheat(step), notes))
    assert len(notes) == 1
    assert notes[0].startswith("steps run eagerly, one kernel at a time: a replay differed from the eager step")
    expected = make_step(**options)
    assert losses == losses_of(expected)  # neither the check nor the capture left a trace
    assert all(map(torch.equal, step._state(), expected._state()))
    assert step.mode == "eager"


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Muon"])
def test_the_check_leaves_no_trace_in_the_run(optimizer):
    options = {"recipe": {"optimizer": optimizer}, "augmentation": {"mixup_alpha": 0.2}}
    notes, step, expected = [], make_step(**options), make_step(**options)
    assert losses_of(captured(step, FakeGraphs(), notes)) == losses_of(expected)
    assert all(map(torch.equal, step._state(), expected._state()))
    assert (notes, step.mode) == ([], "graph")


def test_the_rate_reaches_the_optimizer_after_its_state_was_loaded():
    """A state from a file brings a learning rate of its own; the next step must not use it."""
    step = make_step()
    step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    step(torch.arange(8), 0.025)
    assert [group["lr"].item() for group in step.optimizer.param_groups] == pytest.approx([0.025, 0.025])


def test_graphs_are_the_default_on_cuda_and_refused_elsewhere(tmp_path, source, recipe):
    assert choose_mode("auto", torch.device("cuda")) == "graph"
    assert choose_mode("auto", torch.device("cpu")) == "eager"
    run = create_run(recipe, stem="run", root=tmp_path)
    with pytest.raises(UsageError, match="only CUDA captures graphs: use --step eager or auto on cpu"):
        train(recipe, source=source, run=run, device="cpu", mode="graph")


@needs_cuda
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_captured_steps_give_the_eager_losses(optimizer, dtype):
    notes = []
    recipe = {"optimizer": optimizer}
    expected = losses_of(make_step(device="cuda", dtype=dtype, recipe=recipe))
    step = make_step(device="cuda", dtype=dtype, recipe=recipe, mode="graph", note=notes.append)
    assert losses_of(step) == pytest.approx(expected, rel=2e-2 if dtype == torch.bfloat16 else 1e-3)
    assert notes == []
    assert set(step._captured.replays) == {32}


@needs_cuda
def test_on_cuda_replays_draw_what_eager_steps_draw():
    """All of the augmentation, mixup's Beta included: the same seed gives the same numbers, fresh ones at each step."""
    augmented = {"mixup_alpha": 0.2}
    expected = losses_of(make_step(device="cuda", augmentation=augmented), steps=12)
    step = make_step(device="cuda", augmentation=augmented, mode="graph")
    assert losses_of(step, steps=12) == pytest.approx(expected, rel=1e-2)
    step = make_step(device="cuda", augmentation=augmented, mode="graph")
    batch, losses = torch.arange(8, device="cuda"), []
    for _ in range(WARM_UP_STEPS + 5):
        step(batch, 0.0)
        losses.append(step.take_sums()[0])
    assert len(set(losses)) == len(losses)


@needs_cuda
def test_on_cuda_a_failed_capture_leaves_the_eager_step_intact(monkeypatch):
    notes = []
    step = make_step(device="cuda", augmentation={"mixup_alpha": 0.2}, mode="graph", note=notes.append)
    update = step._update

    def waits(indices, crop_size):
        update(indices, crop_size)
        if torch.cuda.is_current_stream_capturing():
            step._sums.tolist()  # waits for the device, which cannot be recorded

    step._captured.step = waits
    losses_of(step, steps=6)
    assert len(notes) == 1
