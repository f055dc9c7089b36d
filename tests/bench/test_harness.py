"""Workers that answer line by line, and whole programs: their time, their memory, and how they fail."""

import os
import sys

import pytest

from toolkit.bench.harness import ROOT, Worker, peak_memory, time_program
from toolkit.errors import ToolkitError

ECHO = """
import sys
from toolkit.bench.harness import run_worker

def serve(spec, answer):
    print("noise")
    answer({"spec": spec})
    for line in sys.stdin:
        if line == '"fail"\\n':
            raise ValueError("as asked")
        answer({"order": line})
    answer({"last": True})

run_worker(serve)
"""


@pytest.fixture
def echo(tmp_path):
    (tmp_path / "echo_worker.py").write_text(ECHO)
    worker = Worker("echo_worker", {"a": 1}, environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    yield worker
    worker.stop()


def test_a_worker_answers_each_order_whatever_it_prints(echo):
    assert echo.ready == {"spec": {"a": 1}}
    assert echo.ask(3) == {"order": "3\n"}
    assert echo.finish() == {"last": True}
    assert echo.failure == ""


def test_a_worker_that_fails_keeps_its_reason_and_answers_nothing_more(echo):
    assert echo.ask("fail") == {}
    assert echo.failure == "ValueError: as asked"
    assert echo.ask(1) == echo.finish() == {}


def test_a_program_is_timed_by_itself():
    held = bytearray(200_000_000)  # of ours, which are not the program's
    done = time_program([sys.executable, "-c", "import time; x = b'1' * 50_000_000; time.sleep(0.2); print('noise')"])
    assert 0.2 < done.seconds < 20
    if done.peak_memory is not None:
        assert 50e6 < done.peak_memory < 150e6
    assert len(held) > 0


def test_a_program_that_fails_says_why():
    with pytest.raises(ToolkitError, match="failed: ValueError: no"):
        time_program([sys.executable, "-c", "raise ValueError('no')"])


def test_peak_memory_is_of_this_process():
    memory = peak_memory()
    assert memory is None or memory > 10e6
