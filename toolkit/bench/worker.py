"""A worker process of a benchmark: reads orders from stdin, answers each with a line of JSON on stdout.

This module imports only the standard library and `toolkit.errors`, to add little memory and start time of its own.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, first_line


@dataclass(frozen=True)
class Workload:
    """What a worker process measures, ready to be timed.

    Attributes:
        run_round: takes a batch size and a number of seconds; returns `images_per_second`, and the `milliseconds` of
            each call if calls are timed one by one.
        memory: called after the last round, in bytes.
        start_seconds, figures, note: see `toolkit.bench.result.Result`.
    """

    run_round: Callable[[int, float], dict[str, Any]]
    memory: Callable[[], int | None]
    start_seconds: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


def run_worker(prepare: Callable[[dict[str, Any]], Workload]) -> None:
    """Prepare a workload with the options from `toolkit.bench.harness.Worker`, and time it for each order.

    Send an answer when the workload is ready, after each order, and at the end of the orders. On an exception, answer
    with its first line and exit. Stdout carries only answers: the output of libraries goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        subject = prepare(json.loads(sys.argv[1]))
        answer({name: getattr(subject, name) for name in ("start_seconds", "figures", "note")})
        for order in map(json.loads, sys.stdin):
            answer(subject.run_round(order["batch_size"], order["seconds"]))
        answer({"memory": subject.memory()})
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception as error:
        kind = "" if isinstance(error, ToolkitError) else f"{type(error).__name__}: "
        answer({"error": f"{kind}{first_line(error)}"})
        sys.exit(1)


def read_resident_memory() -> int | None:
    """Resident memory of this process, in bytes; None on systems other than Linux."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def read_peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None on Windows.

    On Linux it is read from /proc: `getrusage` also counts the memory of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        return _peak_from_usage()


def _peak_from_usage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * USAGE_UNIT


USAGE_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in which `ru_maxrss` counts
