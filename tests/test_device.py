"""Hardware settings of a run: threads, number formats, devices."""

import pytest
import torch

from toolkit import device as module
from toolkit.device import choose_device, choose_dtype, note_on_crowded_cores, use_available_cores
from toolkit.errors import UsageError


@pytest.fixture
def asked(monkeypatch):
    """The numbers passed to torch.set_num_threads; torch has 8 threads, and OMP_NUM_THREADS is not set."""
    numbers = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


@pytest.mark.parametrize(("cores", "threads"), [(2, 2), (64, 8)])
def test_threads_are_limited_to_the_cores_and_never_increased(monkeypatch, asked, cores, threads):
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    use_available_cores()
    assert asked == [threads]


def test_omp_num_threads_takes_precedence(monkeypatch, asked):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    use_available_cores()
    assert asked == []


def test_requested_precision_is_used():
    assert choose_dtype("float32", torch.device("cpu")) == torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


def test_unknown_device():
    with pytest.raises(UsageError, match="cannot use the device 'gpu'"):
        choose_device("gpu")


def test_busy_cores_give_a_note():
    cpu = torch.device("cpu")
    note = note_on_crowded_cores(cpu, threads=2, seconds=10.0, processor_seconds=13.0)
    assert "2 threads had only 65%" in note
    assert "OMP_NUM_THREADS=1" in note
    assert note_on_crowded_cores(cpu, threads=2, seconds=10.0, processor_seconds=19.0) == ""
    assert note_on_crowded_cores(cpu, threads=1, seconds=10.0, processor_seconds=3.0) == ""
    assert note_on_crowded_cores(torch.device("cuda"), threads=8, seconds=10.0, processor_seconds=10.0) == ""
