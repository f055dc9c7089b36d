"""Processor cores: how many this process may use, and how its threads wait for one another."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

SPIN_COUNT = "10000"  # see limit_spinning


def available_cores(*, root: Path = Path("/")) -> int:
    """Return how many cores this process may use, at least 1, by its affinity and its container's quota.

    Args:
        root: the folder that holds /proc and /sys.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (quota for group in _control_groups(root) if (quota := _quota(group)) is not None)
    return max(1, min(cores, math.ceil(min(quotas, default=cores))))


def limit_spinning() -> None:
    """Make OpenMP threads that wait for one another sleep after a short spin; child processes inherit the setting.

    Call it before torch is imported: libgomp, the OpenMP library of torch on Linux, reads the environment once, when it
    is loaded. Other OpenMP libraries ignore the variable. No effect if the user has set it, or OMP_WAIT_POLICY.

    A training step is hundreds of short parallel regions, at the end of which the threads wait for one another. By
    default they spin for 300,000 iterations (milliseconds) before they sleep. If another program holds the core of one
    thread, the others waste their own share of the cores in this way. Steps of resnet20 with batch 64 on two cores:
    741 images/s by default, 728 with 10,000 iterations, 560 with 1,000. Beside two busy processes, in three runs each:
    168, below 30, below 30 by default; 346, 44, 374 with 10,000. `results/busy_neighbours.py` times whole commands.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def waiting_seconds(*, root: Path = Path("/")) -> float:
    """Return how long the threads of this process have waited for a core while they could run, in seconds.

    The sum over all threads that exist now; 0.0 where the kernel does not report it (other than Linux).
    """
    nanoseconds = 0
    for path in (root / "proc/self/task").glob("*/schedstat"):
        try:
            nanoseconds += int(path.read_text().split()[1])
        except (OSError, ValueError, IndexError):  # the thread has ended, or the kernel keeps no statistics
            continue
    return nanoseconds / 1e9


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
