"""Which kind of step a run takes."""

import pytest
import torch

from toolkit.errors import UsageError
from toolkit.training.mode import MEASURED, CompileFigures, choose_mode

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GAINS_A_LITTLE = CompileFigures(seconds=60, eager=472, compiled=514)


def test_compiling_pays_from_the_images_on_at_which_the_saved_time_exceeds_the_compile_time():
    figures = CompileFigures(seconds=10.0, eager=100.0, compiled=200.0)  # saves 5 ms an image
    assert not figures.pays(2000, shapes=1)
    assert figures.pays(2001, shapes=1)
    assert not figures.pays(2001, shapes=2)
    assert figures.pays(4001, shapes=2)


def test_a_slower_compiled_step_never_pays():
    assert not CompileFigures(seconds=0.0, eager=2.0, compiled=1.0).pays(10**12, shapes=1)


@pytest.mark.parametrize(("dtype", "epochs", "mode"), [
    (torch.float32, 150, "compiled"), (torch.float32, 2, "eager"), (torch.bfloat16, 150, "eager"),
])  # fmt: skip
def test_automatic_choice_follows_the_figures(dtype, epochs, mode, monkeypatch):
    monkeypatch.setitem(MEASURED, ("cpu", torch.float32), GAINS_A_LITTLE)
    assert choose_mode("auto", CPU, dtype, images=45_000 * epochs).mode == mode


def test_the_choice_is_said_where_a_user_would_wonder(monkeypatch):
    monkeypatch.setitem(MEASURED, ("cpu", torch.float32), GAINS_A_LITTLE)
    assert "about 120 s" in choose_mode("auto", CPU, torch.float32, images=10**8, shapes=2).note
    assert "too short" in choose_mode("auto", CPU, torch.float32, images=100).note
    assert choose_mode("auto", CPU, torch.bfloat16, images=100).note == ""


def test_cuda_captures():
    choice = choose_mode("auto", CUDA, torch.bfloat16, images=100)
    assert choice.mode == "graph"
    assert "CUDA graphs" in choice.note
    assert choose_mode("compiled-graph", CUDA, torch.bfloat16, images=1).mode == "compiled-graph"


@pytest.mark.parametrize(("asked", "taken"), [("graph", "eager"), ("compiled-graph", "compiled")])
def test_without_cuda_nothing_is_captured_and_it_is_said(asked, taken):
    choice = choose_mode(asked, CPU, torch.float32, images=1)
    assert choice.mode == taken
    assert "only CUDA captures graphs" in choice.note


def test_a_device_that_was_not_measured_runs_eagerly():
    assert choose_mode("auto", torch.device("mps"), torch.float32, images=10**9).mode == "eager"
    assert ("mps", torch.float32) not in MEASURED


def test_unknown_mode():
    with pytest.raises(UsageError, match=r"one of auto, eager, compiled, graph, compiled-graph, not 'fast'"):
        choose_mode("fast", CPU, torch.float32, images=1)
