"""Devices, number formats, threads, and the note on cores that other programs use."""

import pytest
import torch

from toolkit import device as module
from toolkit.device import choose_device, choose_dtype, describe_busy_cores, limit_threads
from toolkit.errors import UsageError


@pytest.fixture
def requested(monkeypatch):
    """Numbers of threads passed to torch, whose default is 8; OMP_NUM_THREADS is not set."""
    numbers = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


@pytest.mark.parametrize(("cores", "threads"), [(2, 2), (64, 8)])
def test_threads_are_limited_to_the_available_cores(monkeypatch, requested, cores, threads):
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    limit_threads()
    assert requested == [threads]


def test_the_number_of_threads_that_the_user_sets_is_kept(monkeypatch, requested):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    limit_threads()
    assert requested == []


def test_requested_precision():
    assert choose_dtype("float32", torch.device("cpu")) == torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


def test_unknown_device():
    with pytest.raises(UsageError, match="cannot use the device 'gpu'"):
        choose_device("gpu")


CPU = torch.device("cpu")


def test_a_note_names_the_share_of_time_without_a_core():
    assert describe_busy_cores(CPU, threads=2, seconds=10.0, waiting_seconds=7.0) == (
        "other programs use the same cores: the 2 training threads waited 35% of the time for a core, "
        "and for one another. If these programs keep running, stop the training with Ctrl-C and resume it with "
        "OMP_NUM_THREADS=1: it may be faster, and the weights then differ slightly"
    )


@pytest.mark.parametrize(("device", "waiting"), [(CPU, 0.0), (CPU, 4.9), (CPU, -1.0), (torch.device("cuda"), 15.0)])
def test_no_note_while_the_cores_are_free_or_do_not_matter(device, waiting):
    assert describe_busy_cores(device, threads=2, seconds=10.0, waiting_seconds=waiting) == ""
