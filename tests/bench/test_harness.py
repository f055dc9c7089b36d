"""The harness: workers that answer line by line, interleaved rounds, medians and ratios, and how sides fail."""

import os
import sys
import time
from pathlib import Path

import pytest

from toolkit.bench.harness import ROOT, Worker, measure, summarize
from toolkit.bench.program_worker import run_program
from toolkit.bench.result import Result, Side, Timing
from toolkit.bench.worker import read_peak_memory
from toolkit.errors import ToolkitError

FAKE = """
import time
from toolkit.bench.worker import Workload, run_worker

def prepare(options):
    print("noise")
    speeds = iter(options["speeds"])

    def run_round(batch_size, seconds):
        with open(options["log"], "a") as log:
            log.write(f"{options['name']} {batch_size} {seconds}\\n")
        speed = next(speeds)
        if speed is None:
            raise ValueError("as asked")
        time.sleep(options.get("sleep", 0))
        return {"images_per_second": speed, "milliseconds": [1.0, 3.0]}

    return Workload(run_round, memory=lambda: 7, start_seconds=0.5, figures={"size": 3})

run_worker(prepare)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "fake_worker.py").write_text(FAKE)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def fake(log: Path, name: str, *speeds: float | None, **options: float) -> Side:
    return Side(name, "fake_worker", {"name": name, "log": str(log), "speeds": speeds, **options})


def test_sides_are_timed_in_turn_and_medians_and_ratios_follow(environment, log):
    sides = [fake(log, "a", 1.0, 9.0, 2.0, 5.0, 5.0, 5.0), fake(log, "b", 4.0, 4.0, 4.0, 1.0, 1.0, 1.0)]
    found = measure(sides, [8, 1], rounds=3, seconds=0.25, environment=environment)
    turns = ["a 8 0.25", "b 8 0.25"] * 3 + ["a 1 0.25", "b 1 0.25"] * 3
    assert log.read_text().splitlines() == turns

    def timing(size: int, speed: float, rounds: tuple[float, ...], ratio: float) -> Timing:
        return Timing(size, speed, rounds, ratio, calls=6, p50_ms=2.0, p95_ms=3.0, p99_ms=3.0)

    a = (timing(8, 2.0, (1.0, 9.0, 2.0), 1.0), timing(1, 5.0, (5.0, 5.0, 5.0), 1.0))
    b = (timing(8, 4.0, (4.0, 4.0, 4.0), 2.0), timing(1, 1.0, (1.0, 1.0, 1.0), 0.2))
    assert found == [
        Result(side, timings, start_seconds=0.5, memory=7, figures={"size": 3})
        for side, timings in zip(sides, (a, b), strict=True)
    ]


def test_a_side_that_fails_keeps_its_reason_and_the_others_are_measured(environment, log):
    sides = [fake(log, "a", 1.0, None), fake(log, "b", 4.0, 4.0)]
    failed, other = measure(sides, [8, 1], rounds=1, seconds=0, environment=environment)
    assert failed == Result(sides[0], start_seconds=0.5, figures={"size": 3}, note="ValueError: as asked")
    assert [timing.images_per_second for timing in other.timings] == [4.0, 4.0]
    assert [timing.ratio for timing in other.timings] == [None, None]


def test_a_worker_without_an_answer_in_time_is_killed(environment, log):
    worker = Worker(fake(log, "a", 1.0, sleep=60), environment=environment)
    worker.answer_limit = 0.1
    worker.time(8, 0)
    worker.time(8, 0)  # ignored
    assert worker.finish().note == "the process ended without an answer"
    worker.stop()


def test_a_module_that_does_not_exist_is_a_failed_side():
    (result,) = measure([Side("a", "no_such_worker", {})], [1], rounds=1, seconds=0)
    assert result.note == "the process ended without an answer"


def test_nothing_is_started_after_the_deadline(environment, log):
    sides = [fake(log, "a", 1.0), fake(log, "b", 4.0)]
    found = measure(sides, [8], rounds=1, seconds=0, environment=environment, deadline=time.monotonic() - 1)
    assert found == [Result(side, note="not measured: the time limit was reached") for side in sides]
    assert not log.exists()


def test_an_answer_without_single_calls_has_no_percentiles():
    assert summarize(4, [{"images_per_second": 3.0}, {"images_per_second": 5.0}]) == Timing(4, 4.0, (3.0, 5.0))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the memory of a program")
def test_a_program_is_timed_by_itself():
    held = bytearray(100_000_000)  # memory of this process, not of the program
    program = [sys.executable, "-c", "import time; x = b'1' * 50_000_000; time.sleep(0.2); print('noise')"]
    worker = Worker(Side("p", "toolkit.bench.program_worker", {"command": program, "pictures": 3, "warm_up": False}))
    worker.time(1, 0)
    result = worker.finish()
    worker.stop()
    (timing,) = result.timings
    assert timing.p50_ms is not None
    assert 200 < timing.p50_ms < 20_000
    assert timing.images_per_second == pytest.approx(3e3 / timing.p50_ms)
    assert result.memory is not None
    assert 50e6 < result.memory < 100e6
    assert len(held) == 100_000_000


def test_a_program_that_fails_says_why():
    with pytest.raises(ToolkitError, match="failed: ValueError: no"):
        run_program([sys.executable, "-c", "raise ValueError('no')"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the memory of a process")
def test_peak_memory_counts_what_was_freed():
    before = read_peak_memory()
    assert before is not None
    bytearray(before + 50_000_000)  # filled with zeros: resident once, then freed
    after = read_peak_memory()
    assert after is not None
    assert after > before + 40_000_000
