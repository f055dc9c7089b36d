"""The benchmark harness: one process per side, timed in turn over several rounds, so that drift affects all alike."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench.result import Result, Side, Timing
from toolkit.reporting import Note, ignore

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `toolkit` and `cli.py`
ANSWER_LIMIT = 400.0  # seconds without an answer after which a process is killed; compilation fits in


def measure(
    sides: Sequence[Side],
    batch_sizes: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    environment: dict[str, str] | None = None,
    answer_limit: float = ANSWER_LIMIT,
    deadline: float = float("inf"),
    progress: Note = ignore,
) -> list[Result]:
    """Time every side at every batch size, interleaved: while one process works, the others wait.

    A side that fails has no timings; its note has the reason, and the other sides are still measured.

    Args:
        sides: the first is the one that ratios refer to.
        batch_sizes: in the order in which they are measured.
        rounds: number of times that each side is timed at each batch size; the median counts.
        seconds: duration of one timing.
        environment: variables added to this process's own for the workers.
        answer_limit: seconds that a worker may take for one answer.
        deadline: of `time.monotonic()`; after it, no process and no round but the first of a batch size starts.
        progress: called with a description of the next measurement.
    """
    workers: list[Worker] = []
    try:
        for side in sides:
            if time.monotonic() < deadline:
                progress(f"starting {side.name}")
                workers.append(Worker(side, environment=environment or {}, answer_limit=answer_limit))
        for batch_size in batch_sizes:
            for number in range(rounds):
                if number > 0 and time.monotonic() > deadline:
                    break
                progress(f"batch {batch_size}: round {number + 1} of {rounds}")
                for worker in workers:
                    worker.time(batch_size, seconds)
        results = [worker.finish() for worker in workers]
    finally:
        for worker in workers:
            worker.stop()
    results += [Result(side, note="not measured: the time limit was reached") for side in sides[len(workers) :]]
    return _with_ratios(results)


def _with_ratios(results: list[Result]) -> list[Result]:
    """Fill in the ratios to the first side; None where that side has no timing of the batch size."""
    base = {timing.batch_size: timing.images_per_second for timing in results[0].timings}

    def rate(timing: Timing) -> Timing:
        reference = base.get(timing.batch_size)
        return replace(timing, ratio=timing.images_per_second / reference if reference else None)

    return [replace(result, timings=tuple(map(rate, result.timings))) for result in results]


class Worker:
    """The process of one side, and its answers so far. After a failure it ignores all further orders.

    Args:
        side: what the process runs (see `toolkit.bench.worker.run_worker`).
        environment: variables added to this process's own.
        answer_limit: seconds without an answer after which the process is killed.
    """

    def __init__(
        self, side: Side, *, environment: dict[str, str] | None = None, answer_limit: float = ANSWER_LIMIT
    ) -> None:
        self.side, self.answer_limit = side, answer_limit
        self.failure = ""
        self.answers: dict[int, list[dict[str, Any]]] = {}  # batch size -> an answer per round
        self._process = subprocess.Popen(
            [sys.executable, "-m", side.worker, json.dumps(side.options | {"started": time.time()})],
            env=child_environment() | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.ready = self._read_answer()
        except BaseException:  # interrupted: the caller has no worker to stop
            self.stop()
            raise

    def time(self, batch_size: int, seconds: float) -> None:
        """Run one round."""
        assert self._process.stdin is not None
        if self.failure:
            return
        try:
            self._process.stdin.write(json.dumps({"batch_size": batch_size, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            self.failure = f"the process ended ({error})"
        else:
            self.answers.setdefault(batch_size, []).append(self._read_answer())

    def finish(self) -> Result:
        """Close the input of the process, and summarize its answers."""
        assert self._process.stdin is not None
        last: dict[str, Any] = {}
        if not self.failure:
            self._process.stdin.close()
            last = self._read_answer()
        return Result(
            side=self.side,
            timings=() if self.failure else tuple(summarize(size, rounds) for size, rounds in self.answers.items()),
            start_seconds=self.ready.get("start_seconds"),
            memory=last.get("memory"),
            figures=self.ready.get("figures", {}),
            note=self.failure or self.ready.get("note", ""),
        )

    def stop(self) -> None:
        """Kill the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _read_answer(self) -> dict[str, Any]:
        """Read the next answer; if there is none, set `failure` to the reason and return {}."""
        assert self._process.stdout is not None
        timer = threading.Timer(self.answer_limit, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended without an answer"}
        self.failure = answer.get("error", "")
        return {} if self.failure else answer


def summarize(batch_size: int, answers: Sequence[dict[str, Any]]) -> Timing:
    """Medians and percentiles over the answers of all rounds."""
    speeds = tuple(answer["images_per_second"] for answer in answers)
    calls = [milliseconds for answer in answers for milliseconds in answer.get("milliseconds", ())]
    p50, p95, p99 = np.percentile(calls, [50, 95, 99]).tolist() if calls else (None, None, None)
    return Timing(batch_size, statistics.median(speeds), speeds, calls=len(calls), p50_ms=p50, p95_ms=p95, p99_ms=p99)


def child_environment() -> dict[str, str]:
    """Return the environment of this process, with the toolkit's folder added to PYTHONPATH."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}
