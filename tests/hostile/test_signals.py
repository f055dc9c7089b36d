"""Everything ends: one signal ends a command within two seconds, a second one at once, in native code too."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.hostile import posix
from tests.support.sources import ROOT
from toolkit.interrupt import GRACE_SECONDS

pytestmark = [pytest.mark.hostile, posix, pytest.mark.slow]

SLACK = 3.0  # seconds: on a busy machine

# A command that is busy in native code, where Python cannot raise KeyboardInterrupt: in the main thread or in others.
PROGRAM = """
import typer
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from toolkit.command_line import command, run_app
from toolkit.interrupt import describe_interrupt

app = typer.Typer()

def work():
    print("started", flush=True)
    np.linalg.eigvals(np.random.default_rng(0).normal(size=(4000, 4000)))

def busy(where: str) -> None:
    with describe_interrupt(lambda: "half of it is kept"):
        if where == "main":
            work()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()

def quick() -> None:
    print("started", flush=True)

command(app)(busy)
command(app)(quick)
run_app(app)
"""


def start(*command: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[float, str]:
    """Seconds until the process has ended with exit code 130, and its stderr."""
    start = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    return time.monotonic() - start, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_signal_ends_native_code_within_two_seconds(where: str, number: signal.Signals) -> None:
    with start("-c", PROGRAM, "busy", where) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        seconds, errors = ended(process)
    assert seconds < GRACE_SECONDS + SLACK
    assert errors.splitlines().count("half of it is kept") == 1


@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_second_signal_ends_it_at_once(where: str) -> None:
    with start("-c", PROGRAM, "busy", where) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        seconds, _ = ended(process)
    assert seconds < GRACE_SECONDS


def test_a_command_that_is_not_interrupted_ends_as_ever() -> None:
    with start("-c", PROGRAM, "quick") as process:
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "started\n", "")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_interrupted_training_says_how_to_resume(tmp_path: Path) -> None:
    command = ["-m", "cli", "train", "--recipe", "demo", "--data", "demo", "--model", "m6", "--name", "x"]
    with start(*command, cwd=tmp_path) as process:
        wait_for((tmp_path / "runs" / "x" / "last.pt").exists, process)
        process.send_signal(signal.SIGTERM)
        seconds, errors = ended(process)
    assert seconds < GRACE_SECONDS + SLACK
    assert "in runs/x. Resume with: cifar train --resume runs/x --data demo" in errors
