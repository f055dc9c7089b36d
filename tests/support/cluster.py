"""Engines whose parts die, pictures that take a while, and tiny data sets on disk."""

import csv
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image

from tests.support.pictures import write_folder
from toolkit.cluster import local_engine
from toolkit.cluster.jobs import Engine, Job, Outcome, Outcomes
from toolkit.processes import Process
from toolkit.recipes.recipe import Recipe
from toolkit.reporting import ignore


class Disturbed:
    """An engine, and what happens to it after its first outcome, or once a condition holds."""

    def __init__(
        self, engine: Engine, disturb: Callable[[], object], *, when: Callable[[], bool] | None = None
    ) -> None:
        self.engine, self.disturb, self.when = engine, disturb, when
        self.disturbed = False

    def run(self, jobs: Iterable[Job], *, on_wait: Callable[[], object] = ignore) -> Outcomes:
        def waiting() -> None:
            on_wait()
            if self.when is not None and self.when():
                self._disturb()

        for outcome in self.engine.run(jobs, on_wait=waiting):
            if self.when is None:
                self._disturb()
            yield outcome

    def _disturb(self) -> None:
        if not self.disturbed:
            self.disturbed = True
            self.disturb()


class Killable(Process):
    """A process of the local engine that the test can find."""

    started: list["Killable"] = []  # noqa: RUF012

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.started.append(self)


def record_processes(monkeypatch) -> list[Killable]:
    monkeypatch.setattr(local_engine, "Process", Killable)
    Killable.started.clear()
    return Killable.started


def kill_last(processes: list[Killable]) -> None:
    os.kill(processes[-1].pid, signal.SIGKILL)


def slow_pictures(folder: Path, count: int, *, side: int = 2000) -> list[str]:
    """Pictures that take some tens of milliseconds each to decode: one file with many names."""
    folder.mkdir(parents=True)
    first = folder / "0000.png"
    Image.new("RGB", (side, side), (250, 10, 10)).save(first)
    for number in range(1, count):
        os.link(first, folder / f"{number:04}.png")
    return [str(folder / f"{number:04}.png") for number in range(count)]


def rows_of(folder: Path) -> list[str]:
    """The paths in all parts, in order."""
    paths = []
    for part in sorted(folder.glob("part-*.csv")):
        with part.open(newline="", encoding="utf-8") as file:
            paths += [row["path"] for row in csv.DictReader(file)]
    return paths


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each part: they change if it is written again."""
    statuses = {part.name: part.stat() for part in folder.glob("part-*")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in statuses.items()}


def tiny_data(folder: Path, *, each: int = 12) -> Path:
    """Pictures of noise in two classes: enough for epochs of a fraction of a second."""
    count = iter(range(10**6))
    names = ("train/cat", "train/dog", "test/cat", "test/dog")
    sizes = (each, each, 2, 2)
    return write_folder(folder, {name: [next(count) for _ in range(n)] for name, n in zip(names, sizes, strict=True)})


def tiny_recipe(epochs: int) -> Recipe:
    return Recipe.from_dict(
        {"epochs": epochs, "batch_size": 8, "learning_rate": 0.05, "run": {"val_size": 8, "precision": "float32"}}
    )


def outcomes(engine: Engine, jobs: Iterable[Job]) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in engine.run(jobs)}


def first(iterator: Iterator[Outcome], count: int) -> list[Outcome]:
    return [next(iterator) for _ in range(count)]
