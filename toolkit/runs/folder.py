"""The run folder: where a training run keeps its recipe, metrics, checkpoints, summary and pictures."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toolkit.errors import ToolkitError, UsageError
from toolkit.files import display, open_regular, replacing
from toolkit.recipes.recipe import Recipe, load_recipe

RUNS = Path("runs")

MAX_METRICS_BYTES = 64 * 2**20  # a quarter of a million epochs


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name."""

    path: Path

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def teacher(self) -> Path:
        """A copy of the teacher's checkpoint, in a run that has one."""
        return self.path / "teacher.pt"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def is_finished(self) -> bool:
        return self.summary.is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder. Raises `ToolkitError` where one does."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ToolkitError(f"another process is training in {self.path}: wait for it, or stop it") from error
        except OSError as error:
            raise ToolkitError(f"cannot write in {self.path}: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def recipe(self) -> Recipe:
        """The run's resolved recipe. Raises `ToolkitError` where it is missing."""
        if not (self.path / "recipe.toml").is_file():
            raise ToolkitError(f"{self.path} is not a run folder: it holds no recipe.toml")
        return load_recipe(str(self.path / "recipe.toml"))

    def write_recipe(self, recipe: Recipe) -> None:
        """Write `recipe.toml`, and the folder where there is none: what makes it a run. May raise `ToolkitError`."""
        with replacing(self.path / "recipe.toml") as temporary:
            temporary.write_text(recipe.as_toml(), encoding="utf-8")

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one epoch's line to `metrics.jsonl`."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ToolkitError(f"cannot write {self.metrics}: {error.strerror or error}") from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """All epochs so far; a line that a crash left half-written is passed over.

        Raises:
            ToolkitError: the file cannot be read, or has more than `MAX_METRICS_BYTES`.
        """
        if not self.metrics.is_file() or self.metrics.stat().st_size == 0:
            return []
        with open_regular(self.metrics, max_bytes=MAX_METRICS_BYTES) as file:
            lines = file.read(MAX_METRICS_BYTES).decode("utf-8", "replace").splitlines()
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and type(record.get("epoch")) is int:
                records.append(record)
        return records

    def keep_metrics(self, epochs: int) -> None:
        """Drop the lines of epochs that come after the first `epochs`: they will be trained again."""
        if not os.path.lexists(self.metrics):
            return
        kept = [record for record in self.read_metrics() if record["epoch"] <= epochs]
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote."""
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink(missing_ok=True)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, which marks the run as finished."""
        with replacing(self.summary) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    def read_summary(self) -> dict[str, Any]:
        """The final figures. Raises `ToolkitError` where the run is not finished, or the file cannot be read."""
        if not self.is_finished:
            raise ToolkitError(
                f"the run {self.path} is not finished: `cifar train --resume {self.path}` goes on with it"
            )
        with open_regular(self.summary, max_bytes=MAX_METRICS_BYTES) as file:
            content = file.read(MAX_METRICS_BYTES)
        try:
            values: dict[str, Any] = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ToolkitError(
                f"{self.summary} is damaged ({display(str(error))}): remove it, and `cifar train --resume {self.path}` "
                "writes it anew"
            ) from error
        return values


def create_run(recipe: Recipe, *, stem: str, name: str | None = None, root: Path = RUNS) -> RunFolder:
    """A new folder under `root` with the recipe in it; a folder that exists is never taken.

    Args:
        recipe: written as `recipe.toml`.
        stem: what a run without a name is called; a number is added where that is taken.
        name: the name that the user wants.
        root: the folder of runs.

    Raises:
        UsageError: the name is taken or no plain folder name.
        ToolkitError: the folder cannot be made.
    """
    if name is not None:
        require_name(name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = _new_folder(root, [name] if name else _numbered(stem))
    except OSError as error:
        raise ToolkitError(f"cannot make a run folder in {root}: {error.strerror or error}") from error
    run = RunFolder(path)
    run.write_recipe(recipe)
    return run


def require_name(name: str) -> None:
    """Raises `UsageError` where `name` is no plain folder name."""
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise UsageError(f"{name!r} is no name for a run: use letters, digits, '.', '_', '+' and '-'")


def _numbered(stem: str) -> list[str]:
    return [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]


def _new_folder(root: Path, names: list[str]) -> Path:
    """Make the first folder that does not exist yet; `mkdir` decides, so two processes never share one."""
    for name in names:
        try:
            (root / name).mkdir()
        except FileExistsError:
            continue
        return root / name
    raise UsageError(f"the run {root / names[0]} exists already: give another --name, or --resume {root / names[0]}")


def open_run(name_or_path: str, *, root: Path = RUNS) -> RunFolder:
    """A run by its path, or by its name under `root`, as `fast` or `fast-seeds/seed0`.

    Raises:
        ToolkitError: there is no such run, or the folder holds several seeds.
    """
    for path in (Path(name_or_path), root / name_or_path):
        if (path / "recipe.toml").is_file():
            return RunFolder(path)
        if (path / "seed0" / "recipe.toml").is_file():
            raise ToolkitError(
                f"{path} holds a run for each of several seeds: name one of them, such as {path / 'seed0'}"
            )
    names = sorted(path.parent.relative_to(root).as_posix() for path in _in_runs(root, "recipe.toml"))
    known = ", ".join(names) or "none yet"
    raise ToolkitError(f"no run {name_or_path!r}; the runs in {root} are: {known}")


def newest_finished_run(*, root: Path = RUNS) -> RunFolder:
    """The run that finished last, be it by itself or one of several seeds. Raises `ToolkitError` where none has."""
    summaries = sorted(_in_runs(root, "summary.json"), key=lambda path: path.stat().st_mtime)
    if not summaries:
        raise ToolkitError(f"there is no finished run in {root}: `cifar train` makes one")
    return RunFolder(summaries[-1].parent)


def _in_runs(root: Path, file: str) -> list[Path]:
    """That file of every run in `root`, those of several seeds (`toolkit.runs.seeds`) included."""
    return [*root.glob(f"*/{file}"), *root.glob(f"*/seed*/{file}")]
