"""Small nodes of Ray: what they run, and the death of one at a chosen moment. Linux only: it reads /proc."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.serving import wait_until

SMALL = {"object_store_memory": 100 * 2**20, "include_dashboard": False}  # options of a node


def processes_below(pid: int) -> Iterator[tuple[int, str]]:
    """Each process that this one started, directly or not, and its title: Ray's workers name what they run."""
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child, Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
                yield from processes_below(child)


def has_open(pid: int, path: Path) -> bool:
    """Whether the process has the file open."""
    with suppress(OSError):
        return any(descriptor.readlink() == path for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    return False


def kill_node(cluster: Any, *, running: Callable[[int], bool]) -> None:
    """Kill, without warning, a node that runs a job whose process id meets the condition; wait until there is one."""
    found: list[Any] = []

    def find_node() -> bool:
        found.extend(node for node in cluster.worker_nodes if any(running(pid) for pid in jobs_of(node)))
        return bool(found)

    wait_until(find_node, seconds=60)
    cluster.remove_node(found[0], allow_graceful=False)


def jobs_of(node: Any) -> list[int]:
    """The process ids of the jobs that a node runs at this moment."""
    [raylet] = node.all_processes["raylet"]
    return [pid for pid, title in processes_below(raylet.process.pid) if title.startswith("ray::run_job")]
