"""The step: eager, compiled and captured do the same; what is random stays random; what cannot be done is said."""

import copy

import pytest
import torch

from models import build_model
from tests.support.training import FakeGraphs, captured, losses_of, make_step
from toolkit.runs.folder import create_run
from toolkit.training.cuda_graph import WARM_UP_STEPS, CapturedStep
from toolkit.training.trainer import train

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_captured_steps_give_the_eager_losses_and_warm_up_counts_as_training():
    graphs = FakeGraphs()
    expected = losses_of(make_step())
    assert losses_of(captured(make_step(), graphs)) == expected
    assert expected[0] != expected[-1]
    assert (graphs.eager_steps, graphs.recordings, graphs.replays) == (WARM_UP_STEPS, 1, 6 - WARM_UP_STEPS)


def test_one_recording_a_crop_size_and_a_partial_batch_runs_eagerly():
    graphs = FakeGraphs()
    step = captured(make_step(), graphs)
    for crop_size in (24, 32, 24, 32):
        losses_of(step, crop_size=crop_size)
    assert (graphs.recordings, graphs.eager_steps) == (2, 2 * WARM_UP_STEPS)
    assert set(step._captured.replays) == {24, 32}
    losses_of(step, steps=2, size=5)
    assert (graphs.recordings, graphs.eager_steps) == (2, 2 * WARM_UP_STEPS + 2)


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


def test_where_recording_fails_the_steps_go_on_eagerly_and_it_is_said_once():
    notes = []
    graphs = FakeGraphs(fails=True)
    step = make_step()
    step._captured = CapturedStep(
        step._update, batch_size=8, device=torch.device("cpu"), recorder=graphs, before_recording=lambda: None,
        note=notes.append,
    )  # fmt: skip
    assert losses_of(step) == losses_of(make_step())
    assert (graphs.recordings, graphs.eager_steps) == (1, 6)
    assert notes == [
        "the steps run one kernel at a time: they cannot be captured here "
        "(operation not permitted when stream is capturing)"
    ]
    assert step.mode == "eager"


def test_compiled_steps_give_the_eager_losses():
    expected = losses_of(make_step())
    step = make_step(mode="compiled")
    assert losses_of(step) == pytest.approx(expected, rel=1e-4)
    assert step._compiled_crops == {32}
    assert step.seconds_compiling > 0
    assert step.mode == "compiled"


def test_compiling_leaves_no_trace_in_the_run(monkeypatch):
    """The trial batch moves neither the weights, nor BatchNorm's statistics, nor the random numbers."""
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    augmented = {"mixup_alpha": 0.2}
    network = build_model("resnet20", dropout_rate=0.3)
    again = copy.deepcopy(network)
    expected = make_step(network, augmentation=augmented)
    step = make_step(again, augmentation=augmented, mode="compiled")
    assert losses_of(step, steps=2) == losses_of(expected, steps=2)
    states = (step.network.state_dict(), expected.network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_partial_batches_are_not_compiled():
    step = make_step(mode="compiled", batch_size=8)
    losses_of(step, steps=1, size=5)
    assert step.seconds_compiling == 0


def test_where_the_compiler_fails_the_steps_are_eager_and_it_is_said_once(monkeypatch):
    def compile(network, **options):
        def fail(images):
            raise OSError("no compiler\nsecond line")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    notes = []
    step = make_step(mode="compiled", note=notes.append)
    assert losses_of(step) == losses_of(make_step())
    assert notes == ["the steps are not compiled: the compiler failed (OSError: no compiler)"]
    assert step.mode == "eager"


def test_the_rate_reaches_the_optimiser_after_its_state_was_loaded():
    """A state from a file brings a learning rate of its own; the next step must not use it."""
    step = make_step()
    step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    step(torch.arange(8), 0.025)
    assert [group["lr"].item() for group in step.optimizer.param_groups] == pytest.approx([0.025, 0.025])


def test_the_loop_says_which_steps_it_takes(tmp_path, source, recipe):
    notes = []
    run = create_run(recipe.replaced({"epochs": 1}), stem="run", root=tmp_path)
    list(train(run.recipe(), source=source, run=run, device="cpu", mode="graph", note=notes.append))
    assert notes == ["only CUDA captures graphs, so the steps on cpu are eager"]
    assert run.read_summary()["step"] == "eager"


@needs_cuda
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("mode", ["graph", "compiled", "compiled-graph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_every_kind_of_step_gives_the_eager_losses(mode, optimizer, dtype):
    notes = []
    recipe = {"optimizer": optimizer}
    expected = losses_of(make_step(device="cuda", dtype=dtype, recipe=recipe))
    step = make_step(device="cuda", dtype=dtype, recipe=recipe, mode=mode, note=notes.append)
    assert losses_of(step) == pytest.approx(expected, rel=2e-2 if dtype == torch.bfloat16 else 1e-3)
    assert notes == []
    assert step._captured is None or set(step._captured.replays) == {32}


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
def test_on_cuda_a_failed_recording_leaves_the_eager_step_intact(monkeypatch):
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
