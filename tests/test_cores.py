"""Cores under affinity and container quotas."""

import os
from pathlib import Path

import pytest

from toolkit.cores import available_cores


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(root=tmp_path) == 8


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("100000 100000", 1), ("150000 100000", 2), ("10000 100000", 1), ("9000000 100000", 8)],
)
def test_version_2_quota(tmp_path: Path, limit: str, cores: int) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", limit + "\n")
    assert available_cores(root=tmp_path) == cores


def test_the_tightest_enclosing_group_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pod/job\n")
    write(tmp_path / "sys/fs/cgroup/pod/job/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "300000 100000")
    assert available_cores(root=tmp_path) == 3


def test_version_1_quota_of_a_path_that_the_container_does_not_see(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert available_cores(root=tmp_path) == 2


def test_version_1_without_a_quota(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:cpu:/\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert available_cores(root=tmp_path) == 8
