"""Cores under affinity and container quotas, and how long idle threads spin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import ROOT
from toolkit.cores import SPIN_COUNT, available_cores, limit_spinning, waiting_seconds


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_affinity_decides(tmp_path: Path) -> None:
    assert available_cores(root=tmp_path) == 8


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("100000 100000", 1), ("150000 100000", 2), ("10000 100000", 1), ("9000000 100000", 8)],
)
def test_version_2_quota(tmp_path: Path, limit: str, cores: int) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", limit + "\n")
    assert available_cores(root=tmp_path) == cores


def test_the_smallest_quota_of_a_group_and_its_parents_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pod/job\n")
    write(tmp_path / "sys/fs/cgroup/pod/job/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "300000 100000")
    assert available_cores(root=tmp_path) == 3


def test_version_1_quota_of_a_path_outside_the_container(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert available_cores(root=tmp_path) == 2


def test_version_1_without_a_quota(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:cpu:/\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert available_cores(root=tmp_path) == 8


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without variables of OpenMP, in the place of the real one."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    monkeypatch.setattr(os, "environ", variables)
    return variables


def test_spinning_is_limited_whatever_the_number_of_threads(environment: dict[str, str]) -> None:
    environment["OMP_NUM_THREADS"] = "2"
    before = dict(environment)
    limit_spinning()
    assert environment == before | {"GOMP_SPINCOUNT": SPIN_COUNT}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_settings_of_the_user_are_kept(environment: dict[str, str], name: str) -> None:
    environment[name] = "7"
    before = dict(environment)
    limit_spinning()
    assert environment == before


LOAD_LIBGOMP = """
import ctypes, importlib.util, pathlib
from toolkit.cores import limit_spinning
limit_spinning()
torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
for library in torch.glob("lib/libgomp*"):
    ctypes.CDLL(str(library))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
def test_libgomp_reads_the_spin_count(environment: dict[str, str]) -> None:
    """In a process of its own, which loads torch's libgomp alone; OMP_DISPLAY_ENV prints what the library has read."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD_LIBGOMP],
        cwd=ROOT,
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr


def test_waiting_time_is_the_sum_over_threads(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/task/1/schedstat", "7000000000 1500000000 42\n")  # running, waiting (ns), time slices
    write(tmp_path / "proc/self/task/2/schedstat", "9000000000 500000000 42\n")
    assert waiting_seconds(root=tmp_path) == 2.0


@pytest.mark.parametrize("text", ["", "0", "a b c"])
def test_waiting_time_is_zero_without_statistics(tmp_path: Path, text: str) -> None:
    write(tmp_path / "proc/self/task/1/schedstat", text)
    assert waiting_seconds(root=tmp_path) == 0.0
