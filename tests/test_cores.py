"""Cores under affinity and container quotas, and how long idle threads spin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import ROOT
from toolkit.cores import SPIN_COUNT, available_cores, limit_spinning


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


def test_spinning_is_limited(environment: dict[str, str]) -> None:
    limit_spinning()
    assert environment["GOMP_SPINCOUNT"] == SPIN_COUNT


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY"])
def test_settings_of_the_user_are_kept(environment: dict[str, str], name: str) -> None:
    environment[name] = "7"
    before = dict(environment)
    limit_spinning()
    assert environment == before


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp comes with torch for Linux")
def test_the_library_that_comes_with_torch_obeys() -> None:
    """Threads that wait for a main thread at rest use no processor time once they sleep."""
    program = """
import time
from toolkit.cores import limit_spinning
limit_spinning()
import torch
torch.set_num_threads(2)
used = []
for _ in range(20):
    torch.ones(1_000_000).add_(1)
    start = time.process_time()
    time.sleep(0.001)
    used.append(time.process_time() - start)
print(sorted(used)[10])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.0005  # seconds; by default it is the whole millisecond
