"""Measure what busy neighbors cost: the time of `cifar demo` alone and beside two spinning processes.

    python -m results.busy_neighbours [--rounds 3] [--output results/busy-neighbours.json]

Run it on an idle machine; it takes about ten minutes on two cores. Goals: beside the neighbors, `cifar demo` takes at
most 3 times as long as alone; alone, it loses at most 3% against libgomp's default. The sides are interleaved, each
run is a process of its own, and medians are compared. Exit code 1 if a goal is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from toolkit.cores import SPIN_COUNT, available_cores
from toolkit.device import device_name

ROOT = Path(__file__).parents[1]
NEIGHBORS = 2
LARGEST_SLOWDOWN = 3.0  # of the demo beside the neighbors
LARGEST_LOSS = 0.03  # of the demo's speed on idle cores
LIBGOMP_DEFAULT = "300000"  # iterations, as documented for an undefined OMP_WAIT_POLICY
SIDES = (  # name, neighbors, iterations
    ("idle, libgomp's default", 0, LIBGOMP_DEFAULT),
    ("idle", 0, SPIN_COUNT),
    ("busy", NEIGHBORS, SPIN_COUNT),
)


@contextmanager
def neighbors(count: int) -> Iterator[None]:
    """Keep `count` processes spinning while the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def time_demo(count: int, spin_count: str) -> float:
    """Return the seconds that `cifar demo` takes from start to end beside `count` neighbors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder, neighbors(count):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), "demo", "--folder", str(Path(folder) / "demo")],
            env=environment | {"GOMP_SPINCOUNT": spin_count},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side in each round."""
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in SIDES}
    for number in range(rounds):
        for name, count, spin_count in SIDES:
            seconds[name].append(time_demo(count, spin_count))
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    seconds = measure(options.rounds)
    default, idle, busy = (statistics.median(seconds[name]) for name, _, _ in SIDES)
    figures = {
        "machine": device_name(torch.device("cpu")).rpartition(",")[0],
        "cores": available_cores(),
        "load_at_end": os.getloadavg()[0],
        "neighbors": NEIGHBORS,
        "spin_count": SPIN_COUNT,
        "seconds": seconds,
        "slowdown_beside_neighbors": busy / idle,
        "loss_on_idle_cores": idle / default - 1,
    }
    print(json.dumps(figures, indent=2))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(busy > LARGEST_SLOWDOWN * idle or idle > (1 + LARGEST_LOSS) * default)


if __name__ == "__main__":
    sys.exit(main())
