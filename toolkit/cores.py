"""How many processor cores this process may use: its affinity and its container's quota, not what the machine has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores(*, root: Path = Path("/")) -> int:
    """Cores that this process can keep busy, at least 1. `root` is the folder that holds /proc and /sys."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (quota for group in _control_groups(root) if (quota := _quota(group)) is not None)
    return max(1, min(cores, math.ceil(min(quotas, default=cores))))


def _control_groups(root: Path) -> Iterator[Path]:
    """The control groups that limit this process, each with those that enclose it (Linux alone)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / ("sys/fs/cgroup/cpu" if controllers else "sys/fs/cgroup")  # version 1, version 2
        parts = [part for part in inside.split("/") if part not in ("", "..")]
        yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _quota(group: Path) -> float | None:
    """The limit that one control group sets, in cores."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
