"""Processor cores: how many this process may use, and how its threads wait for one another."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

# Iterations of libgomp's wait loop before a thread sleeps; its own default is 300,000. Training steps of resnet20 with
# two threads beside two busy processes: 5 to 8 images/s by default, 29 to 33 with 10,000, 45 to 72 with 1,000. Without
# them 10,000 costs about 2%, 1,000 between 2 and 24%, measured on cores that were not quite idle.
SPIN_COUNT = "10000"


def available_cores(*, root: Path = Path("/")) -> int:
    """Return how many cores this process may use, at least 1, by its affinity and its container's quota.

    Args:
        root: the folder that holds /proc and /sys.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (quota for group in _control_groups(root) if (quota := _quota(group)) is not None)
    return max(1, min(cores, math.ceil(min(quotas, default=cores))))


def limit_spinning() -> None:
    """Let idle OpenMP threads of this process and its children sleep after a short spin.

    Call it before torch is imported: libgomp, which comes with torch for Linux, reads the environment when it is loaded
    and then no more. Other OpenMP libraries ignore the variable. Where the user set any variable of OpenMP or libgomp,
    nothing is changed.

    A training step consists of hundreds of short parallel regions, and by default a thread spins for milliseconds at
    the end of each. If another program holds the core of one thread, the others burn their own share while they wait
    for it. `results/busy_neighbours.py` measures the effect.
    """
    if not any(name.startswith(("OMP_", "GOMP_")) for name in os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the control groups that limit this process, each followed by its parents; none outside Linux."""
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
    """Return the limit of one control group in cores, or None if it sets none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
