"""A worker process of a benchmark: reads orders from stdin, answers each with a line of JSON on stdout.

Only the standard library, so that the process shows the memory and the start of what it measures, not of this file.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, first_line

Orders = Iterator[dict[str, Any]]
Answer = Callable[..., None]  # keywords: the values of the answer


def run_worker(serve: Callable[[dict[str, Any], Orders, Answer], None]) -> None:
    """Run `serve(options, orders, answer)` in a process started by `toolkit.bench.harness.Worker`.

    `serve` answers once when it is ready (optionally with `start_seconds`, `figures` and `note`), then each order of a
    `batch_size` and a number of `seconds` (with `images_per_second` and, if timed, the `milliseconds` of each call),
    and once after the last order (with `memory` in bytes). An exception ends the process; its first line is the answer.

    Answers go to a copy of stdout, and stdout to stderr, because compilers and libraries print to it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        serve(json.loads(sys.argv[1]), map(json.loads, sys.stdin), answer)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception as error:
        kind = "" if isinstance(error, ToolkitError) else f"{type(error).__name__}: "
        answer(error=f"{kind}{first_line(error)}")
        sys.exit(1)


def resident_memory() -> int | None:
    """Resident memory of this process, in bytes; None on systems other than Linux."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_memory() -> int | None:
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
