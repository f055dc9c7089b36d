"""Timing in processes of their own: workers that take orders line by line, and whole programs with their peak memory.

Only the standard library, so that a process shows its own memory and start-up and not this file's.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `toolkit` and `cli.py`
ANSWER_LIMIT = 400.0  # seconds without an answer after which a process is given up, compiling included

Answer = Callable[[dict[str, Any]], None]


class Worker:
    """A module that runs as a process of its own and answers each order with a line of JSON (see `run_worker`).

    One that fails keeps its reason in `failure` and answers {} from then on, so that the others can go on.

    Args:
        module: its name, as `python -m` takes it.
        spec: plain values that say what it is to do.
        environment: variables that it gets besides ours.
    """

    def __init__(self, module: str, spec: dict[str, Any], *, environment: dict[str, str] | None = None) -> None:
        self.failure = ""
        self.started = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(spec)],
            env=our_environment() | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._answer()  # its first line, once it can take orders

    def ask(self, order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        assert self._process.stdin is not None
        if self.failure:
            return {}
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            self.failure = f"the process ended ({error})"
            return {}
        return self._answer()

    def finish(self) -> dict[str, Any]:
        """There are no more orders; the last answer."""
        assert self._process.stdin is not None
        if self.failure:
            return {}
        self._process.stdin.close()
        return self._answer()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        """The next line; {} where there is none, and `failure` says why."""
        assert self._process.stdout is not None
        timer = threading.Timer(ANSWER_LIMIT, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended without an answer"}
        if "error" in answer:
            self.failure = answer["error"]
            return {}
        return answer


def run_worker(serve: Callable[[dict[str, Any], Answer], None]) -> None:
    """The worker's side: `serve` gets what `Worker` was told, answers once it is ready, then each line of stdin.

    The real stdout is kept for the answers: compilers and libraries print to it what they like.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        serve(json.loads(sys.argv[1]), answer)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}".split("\n")[0]})
        sys.exit(1)


@dataclass(frozen=True)
class Finished:
    """A program that ran to its end.

    Attributes:
        seconds: from starting the process to its end.
        peak_memory: its largest resident memory, bytes; None where the system does not tell.
    """

    seconds: float
    peak_memory: int | None


def time_program(command: Sequence[str]) -> Finished:
    """Run a program to its end, its output thrown away.

    It is started by a small process between us and it: the kernel counts the memory of whoever starts a program among
    the program's own.

    Raises:
        ToolkitError: the program failed.
    """
    between = [sys.executable, "-m", "toolkit.bench.harness", *command]
    done = subprocess.run(
        between, env=our_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ToolkitError(f"{' '.join(command)[:200]} failed: {said[0]}")
    return Finished(**json.loads(done.stdout))


def our_environment() -> dict[str, str]:
    """This process's variables, with which another finds this toolkit wherever it starts."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def resident_memory() -> int | None:
    """Bytes of this process in memory now; None where the system does not tell (only Linux does)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_memory() -> int | None:
    """The most bytes that this process had in memory so far; None where the system does not tell."""
    try:  # of this program alone; `getrusage` also counts what was there before it was started
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        return _peak_by_usage()


def _peak_by_usage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _USAGE_UNIT


_USAGE_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


def main() -> None:
    """The small process of `time_program`."""
    start = time.perf_counter()
    child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
    memory = None
    if sys.platform == "win32":
        code = child.wait()
    else:
        _, status, usage = os.wait4(child.pid, 0)
        code, memory = os.waitstatus_to_exitcode(status), usage.ru_maxrss * _USAGE_UNIT
    seconds = time.perf_counter() - start
    if code == 0:
        print(json.dumps({"seconds": seconds, "peak_memory": memory}))
    sys.exit(code != 0)


if __name__ == "__main__":
    main()
