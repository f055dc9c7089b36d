"""The worker of `cifar bench predict` for whole programs: runs a command to its end, once per round.

Each command is started by this small process because the kernel counts the memory of the starting process as the
program's own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from toolkit.bench.worker import USAGE_UNIT, Workload, run_worker
from toolkit.errors import ToolkitError


def prepare(options: dict[str, Any]) -> Workload:
    """`options["command"]` handles `options["pictures"]` pictures; `options["warm_up"]` runs it once untimed."""
    peaks: list[int] = []

    def run_round(batch_size: int, seconds: float) -> dict[str, Any]:
        taken, peak = run_program(options["command"])
        peaks.extend([] if peak is None else [peak])
        return {"images_per_second": options["pictures"] / taken, "milliseconds": [1e3 * taken]}

    if options["warm_up"]:  # the first run reads its libraries from the disk
        run_program(options["command"])
    return Workload(run_round, memory=lambda: max(peaks, default=None))


def run_program(command: Sequence[str]) -> tuple[float, int | None]:
    """Run a program to its end, without its output.

    Returns:
        Seconds from its start to its end, and its largest resident memory in bytes (None on Windows).

    Raises:
        ToolkitError: the program failed; the message has the last line that it wrote to stderr.
    """
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    errors = child.stderr.read().decode(errors="replace")  # to its end, so that the program never waits for room
    peak = None
    if sys.platform == "win32":
        code = child.wait()
    else:
        _, status, usage = os.wait4(child.pid, 0)
        code = child.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * USAGE_UNIT
    seconds = time.perf_counter() - start
    if code != 0:
        reason = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
        raise ToolkitError(f"{' '.join(command)[:200]} failed: {reason[0]}")
    return seconds, peak


if __name__ == "__main__":
    run_worker(prepare)
