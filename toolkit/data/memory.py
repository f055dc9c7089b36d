"""Measure the memory available to this process, limited by the machine and by its control group."""

import os
from pathlib import Path


def available_memory_bytes(*, root: Path = Path("/")) -> int | None:
    """Return the bytes that can be allocated without swapping; None if the system does not report them.

    `root` is the folder that holds /proc and /sys (Linux).
    """
    limits = [limit for limit in (_available(root), _control_group_room(root)) if limit is not None]
    if limits:
        return min(limits)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS: all that is installed
    except (AttributeError, OSError, ValueError):
        return None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _control_group_room(root: Path) -> int | None:
    """Control groups version 2: the limit of the container, less the memory in use that cannot be reclaimed."""
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0)))
    except (OSError, ValueError):  # "max": no limit
        return None
