"""Feed hostile inputs to a reader in a worker process with limits, and add the figures to results/attacks.json.

An input is made from its number and a seed, so that every finding can be made again.
"""

import argparse
import collections
import itertools
import json
import math
import multiprocessing
import resource
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

RESULT = Path(__file__).with_name("attacks.json")

SECONDS = 10  # of processor time for one input; a worker that needs more is killed by SIGXCPU
PATIENCE = 600  # seconds until a worker counts as hanging: a busy machine makes it wait, so not a measurement
EXPECTED = ("read", "refused", "damaged")  # every other outcome is a finding


class Attack(Protocol):
    """One kind of input. It is sent to the worker, so it holds little.

    Attributes:
        kind: its name in the results.
        seed: another seed gives other inputs.
        memory: bytes of address space that the worker may add.
    """

    kind: str
    seed: int
    memory: int

    def make(self, number: int) -> bytes:
        """The content of a file."""

    def read(self, content: bytes) -> str:
        """Read the file as the toolkit does; return one of `EXPECTED`, or what was wrong."""


@dataclass
class Tally:
    """What reading the inputs of one kind took.

    Attributes:
        kind: see `Attack`.
        seed: see `Attack`.
        inputs: how many.
        outcomes: how many had each outcome.
        seconds: the most processor time of one input.
        seconds_number: the number of that input.
        memory_bytes: the most memory of one input, beyond what the worker held before.
        memory_number: the number of that input.
        findings: number and outcome of each input with another outcome than `EXPECTED`.
    """

    kind: str
    seed: int
    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_number: int = -1
    memory_bytes: int = 0
    memory_number: int = -1
    findings: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str, seconds: float, memory: int) -> None:
        self.inputs += 1
        known = outcome if outcome in EXPECTED else "finding"
        self.outcomes[known] = self.outcomes.get(known, 0) + 1
        self.seconds, self.seconds_number = max((self.seconds, self.seconds_number), (round(seconds, 3), number))
        self.memory_bytes, self.memory_number = max((self.memory_bytes, self.memory_number), (memory, number))
        if known == "finding":
            self.findings.append((number, outcome))


def run(attack: Attack, numbers: Iterable[int]) -> Tally:
    """Read the inputs in a worker that is replaced when it had to be killed or died."""
    tally, queue = Tally(attack.kind, attack.seed), collections.deque(numbers)
    while queue:
        connection, other = multiprocessing.Pipe()
        worker = multiprocessing.get_context("spawn").Process(target=_work, args=(other, attack), daemon=True)
        worker.start()
        other.close()
        died = False
        while queue and not died:
            number = queue.popleft()
            outcome, seconds, memory = _ask(connection, number)
            if died := not outcome:
                worker.join(5)
                outcome, seconds = _describe_death(worker.exitcode), float(SECONDS)
            tally.add(number, outcome, seconds, memory)
        worker.kill()
        worker.join()
    return tally


def _ask(connection: Connection, number: int) -> tuple[str, float, int]:
    """Outcome, processor seconds and bytes of one input; no outcome if the worker died or does not answer."""
    try:
        connection.send(number)
        if connection.poll(PATIENCE):
            answer: tuple[str, float, int] = connection.recv()
            return answer
    except (EOFError, OSError):
        pass
    return "", 0.0, 0


def _describe_death(code: int | None) -> str:
    known = {None: "hangs", -24: f"needs more than {SECONDS} s of processor time"}  # 24: SIGXCPU
    return known.get(code, f"kills the process with {code}")


def _work(connection: Connection, attack: Attack) -> None:
    attack.read(attack.make(0))  # loads the libraries
    limit = _status("VmSize") + attack.memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in iter(connection.recv, None):
        content = attack.make(number)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = _status("VmRSS"), time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start) + SECONDS, resource.RLIM_INFINITY))
        try:
            outcome = attack.read(content)
        except MemoryError:
            outcome = "out of memory"
        except Exception as error:  # every exception is a finding
            outcome = f"{type(error).__name__}: {error}"[:200]
        connection.send((outcome, time.process_time() - start, _status("VmHWM") - before))


def _status(name: str) -> int:
    """Of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def add_options(parser: argparse.ArgumentParser, *, count: int) -> None:
    parser.add_argument("--count", type=int, default=count, help="inputs of each kind; default %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first input; default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=int, metavar="NUMBER", help="write this input to attack.bin and read it")


def main(attacks: Iterable[Attack], options: argparse.Namespace) -> None:
    """Do what the options of `add_options` say, and print and record the figures."""
    for attack in attacks:
        if options.write is not None:
            Path("attack.bin").write_bytes(content := attack.make(options.write))
            print(attack.kind, len(content), "bytes:", attack.read(content))
            continue
        tally = run(attack, range(options.first, options.first + options.count))
        print(json.dumps(asdict(tally), indent=1), flush=True)
        record(tally)


def record(tally: Tally) -> None:
    """Add one run to the results, and sum them up."""
    runs: list[dict[str, Any]] = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else []
    runs = sorted([*runs, asdict(tally)], key=lambda run: (run["kind"], run["seed"]))
    RESULT.write_text(json.dumps({"totals": sum_up(runs), "runs": runs}, indent=1) + "\n")


def sum_up(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind: inputs, outcomes, and the worst of `seconds` and `memory_bytes` over its runs."""
    found = []
    for kind, group in itertools.groupby(sorted(runs, key=lambda run: run["kind"]), key=lambda run: run["kind"]):
        each = list(group)
        outcomes = sum((collections.Counter(run["outcomes"]) for run in each), collections.Counter[str]())
        worst = {name: max(run[name] for run in each) for name in ("seconds", "memory_bytes")}
        found.append({"kind": kind, "inputs": sum(run["inputs"] for run in each), "outcomes": dict(outcomes), **worst})
    return found
