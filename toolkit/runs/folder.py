"""The run folder: recipe, metrics, checkpoints, summary and pictures of one training run; finding runs."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toolkit.errors import ToolkitError, UsageError
from toolkit.files import create_folder_atomically, escape, open_regular, quote, replacing, shorten
from toolkit.recipes.recipe import Recipe, load_recipe
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import Checkpoint, save_checkpoint

RUNS = Path("runs")

MAX_NAME_BYTES = 200  # of a run's folder; most file systems allow 255, and a number may be appended

MAX_METRICS_BYTES = 16 * 2**20  # 70,000 epochs
MAX_MEASUREMENT = 1e30  # of a finite loss, rate or time
MAX_SUMMARY_BYTES = 32 * 2**20  # twice that of a run with 1,000 classes


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run's files."""

    path: Path

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def init(self) -> Path:
        """The checkpoint that the run starts from; missing where it starts from random weights."""
        return self.path / "init.pt"

    @property
    def teacher(self) -> Path:
        """The checkpoint that the run distills from; missing in a run without distillation."""
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
    def lock(self) -> Iterator[None]:
        """Lock the folder against other processes. Raises `ToolkitError` if one is training in it."""
        file_lock = FileLock(self.path / ".lock", timeout=0)
        try:
            file_lock.acquire()
        except Timeout as error:
            raise ToolkitError(f"another process is training in {self.path}: wait for it, or stop it") from error
        except OSError as error:
            raise ToolkitError(f"cannot write in {self.path}: {error.strerror or error}") from error
        try:
            yield
        finally:
            file_lock.release()

    def wait_until_free(self, seconds: float) -> None:
        """Wait until no other process trains in the folder, for at most `seconds`."""
        with suppress(Timeout, OSError), FileLock(self.path / ".lock", timeout=seconds):
            pass  # if the folder is still locked, `lock` raises the error

    def read_recipe(self) -> Recipe:
        """Read the resolved recipe. Raises `ToolkitError` if it is missing."""
        if not self.recipe_path.is_file():
            raise ToolkitError(f"{self.path} is not a run folder: it holds no recipe.toml")
        return load_recipe(str(self.recipe_path))

    def write_recipe(self, recipe: Recipe) -> None:
        """Write `recipe.toml`, creating the folder if needed. Raises `ToolkitError` if it cannot be written."""
        with replacing(self.recipe_path) as temporary:
            temporary.write_text(recipe.as_toml(), encoding="utf-8")

    def write_inputs(self, recipe: Recipe, init: Checkpoint | None, teacher: Checkpoint | None = None) -> None:
        """Write `init.pt` and `teacher.pt` if there are any, then `recipe.toml`, which marks the folder as a run."""
        if init is not None:
            save_checkpoint(dataclasses.replace(init, training=None), self.init)
        if teacher is not None:
            self.write_teacher(teacher)
        self.write_recipe(recipe)

    def write_teacher(self, teacher: Checkpoint) -> None:
        """Write `teacher.pt`. Raises `ToolkitError` if it cannot be written."""
        save_checkpoint(dataclasses.replace(teacher, training=None), self.teacher)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one epoch's line to `metrics.jsonl`."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ToolkitError(f"cannot write {self.metrics}: {error.strerror or error}") from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the records of all epochs so far, skipping lines that were edited, or that a crash left half-written.

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
            if isinstance(record, dict) and _is_record(record):
                records.append(record)
        return records

    def count_epochs(self) -> int:
        """Count the lines of the metrics, without parsing them. Raises `ToolkitError` as `read_metrics` does."""
        if not self.metrics.is_file() or self.metrics.stat().st_size == 0:
            return 0
        with open_regular(self.metrics, max_bytes=MAX_METRICS_BYTES) as file:
            return file.read(MAX_METRICS_BYTES).count(b"\n")

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the records of the first `epochs` epochs; later epochs will be trained again."""
        if not os.path.lexists(self.metrics):
            return
        kept = [record for record in self.read_metrics() if record["epoch"] <= epochs]
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def remove_leftovers(self) -> None:
        """Remove temporary files of a process that was killed while writing."""
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def data_name(self) -> str | None:
        """Name of the data set that a finished run was trained on; None if its summary cannot be read."""
        try:
            name = self.read_summary()["data"]["name"]
        except (ToolkitError, LookupError, TypeError):
            return None
        return name if isinstance(name, str) else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, which marks the run as finished."""
        with replacing(self.summary) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    def read_summary(self) -> dict[str, Any]:
        """Read the summary. Raises `ToolkitError` if the run is unfinished or the file cannot be read."""
        if not self.is_finished:
            raise ToolkitError(f"the run {self.path} is unfinished: resume it with `cifar train --resume {self.path}`")
        with open_regular(self.summary, max_bytes=MAX_SUMMARY_BYTES) as file:
            content = file.read(MAX_SUMMARY_BYTES)
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self.make_summary_error(shorten(str(error))) from error
        if not isinstance(values, dict):
            raise self.make_summary_error(f"it holds {quote(values)}")
        return values

    def make_summary_error(self, fault: str) -> ToolkitError:
        """Build the error for a summary that cannot be used."""
        return ToolkitError(
            f"{escape(self.summary)} is damaged ({fault}): remove it, and rewrite it with `cifar train --resume "
            f"{escape(self.path)}`"
        )


def _is_record(values: dict[str, Any]) -> bool:
    """Whether these are an epoch's number and measurements, of a magnitude that can be plotted."""
    epoch = values.get("epoch")
    measurements = [value for value in values.values() if value is not None]
    return (
        type(epoch) is int
        and 0 < epoch < 2**31
        and all(type(value) in (int, float) and abs(value) < MAX_MEASUREMENT for value in measurements)
    )


def create_run(
    recipe: Recipe,
    *,
    stem: str,
    name: str | None = None,
    root: Path = RUNS,
    init: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
) -> RunFolder:
    """Create a folder under `root` that holds the recipe; an existing folder is never used.

    The folder is created with its recipe in one step, so that a process killed at any moment leaves a run that can be
    resumed.

    Args:
        recipe: written as `recipe.toml`.
        stem: name of a run without `name`; a number is added if it is taken.
        name: requested name.
        root: the folder of runs.
        init: the checkpoint that the run starts from, written as `init.pt`; None for random weights.
        teacher: the checkpoint that the run distills from, written as `teacher.pt`.

    Raises:
        UsageError: the name is taken, or cannot be the name of a folder.
        ToolkitError: the folder cannot be created.
    """
    if name is not None:
        require_name(name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return RunFolder(_make_folder(root, [name] if name else _number_names(stem), recipe, init, teacher))
    except OSError as error:
        raise ToolkitError(f"cannot create a run folder in {escape(root)}: {error.strerror or error}") from error


def require_name(name: str) -> None:
    """Raise `UsageError` if `name` cannot be the name of a run folder."""
    if not re.fullmatch(r"[\w][\w.+-]*", name) or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise UsageError(
            f"{quote(name)} cannot name a run: use letters, digits, '.', '_', '+' and '-', at most {MAX_NAME_BYTES} "
            "bytes in all"
        )


def _number_names(stem: str) -> list[str]:
    return [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]


def _make_folder(
    root: Path, names: list[str], recipe: Recipe, init: Checkpoint | None, teacher: Checkpoint | None
) -> Path:
    """Create the first folder that does not exist yet; the rename decides, so two processes never share one."""
    for name in names:
        try:
            with create_folder_atomically(root / name) as temporary:
                RunFolder(temporary).write_inputs(recipe, init, teacher)
        except FileExistsError:
            continue
        return root / name
    taken = escape(root / names[0])
    if not (root / names[0] / "recipe.toml").exists():
        raise UsageError(f"{taken} exists: choose another --name, or remove it")
    raise UsageError(f"the run {taken} exists: choose another --name, or --resume {taken}")


def find_unfinished_run(stem: str, *, root: Path = RUNS) -> RunFolder | None:
    """The newest run with this stem that can be resumed; None if there is none."""
    names = re.compile(rf"{re.escape(stem)}(-\d+)?")
    checkpoints = [path for path in root.glob("*/last.pt") if names.fullmatch(path.parent.name)]
    found = [path for path in checkpoints if path.is_file() and not RunFolder(path.parent).is_finished]
    return RunFolder(max(found, key=_read_mtime).parent) if found else None


def find_runs_of(recipe: Recipe, *, root: Path = RUNS) -> list[RunFolder]:
    """The runs of exactly this recipe, from random weights and without a teacher, that have a checkpoint."""
    runs = [RunFolder(path.parent) for path in sorted(_find_in_runs(root, "last.pt"))]
    return [run for run in runs if not run.init.exists() and not run.teacher.exists() and _has_recipe(run, recipe)]


def _has_recipe(run: RunFolder, recipe: Recipe) -> bool:
    try:
        return run.read_recipe() == recipe
    except ToolkitError:
        return False


def open_run(name_or_path: str, *, root: Path = RUNS) -> RunFolder:
    """Open a run by its path, or by its name under `root`, such as `fast` or `fast-seeds/seed0`.

    Raises:
        ToolkitError: there is no such run, or the folder holds several seeds.
    """
    for path in (Path(name_or_path), root / name_or_path):
        if (path / "recipe.toml").is_file():
            return RunFolder(path)
        if (path / "seed0" / "recipe.toml").is_file():
            raise ToolkitError(f"{path} holds several seeds: name one of them, such as {path / 'seed0'}")
    names = sorted(path.parent.relative_to(root).as_posix() for path in _find_in_runs(root, "recipe.toml"))
    raise ToolkitError(f"no run {quote(name_or_path)}; the runs in {root} are: {', '.join(names) or 'none yet'}")


def find_newest_finished_run(*, data: str | None = None, root: Path = RUNS, note: Note = ignore) -> RunFolder:
    """Return the run that finished last, single or one of several seeds.

    Args:
        data: name of a data set whose runs are preferred, such as "cifar10".
        root: the folder of runs.
        note: called if newer runs are passed over: unfinished ones, and those of other data.

    Raises:
        ToolkitError: no run has finished.
    """
    runs = [RunFolder(path.parent) for path in _find_in_runs(root, "recipe.toml")]
    finished = sorted((run for run in runs if run.is_finished), key=lambda run: _read_mtime(run.summary), reverse=True)
    if not finished:
        raise ToolkitError(f"no run in {root} has finished: `cifar train` starts one")
    preferred = (run for run in finished if data is not None and run.data_name() == data)
    chosen = next(preferred, finished[0])
    newer = [run for run in runs if run.last.is_file() and _read_mtime(run.last) > _read_mtime(chosen.summary)]
    if newer:
        names = ", ".join(f"{run.path} ({'other data' if run.is_finished else 'unfinished'})" for run in newer)
        note(f"Using {chosen.path}, not the newer {names}")
    return chosen


def find_checkpoint(target: str | None, *, data: str | None = None, root: Path = RUNS, note: Note = ignore) -> Path:
    """Return the file that `target` names: itself, or the best checkpoint of a run.

    Args:
        target: a file, or a run by name or path; None for the newest finished run.
        data: see `find_newest_finished_run`.
        root: the folder of runs.
        note: called if the run is unfinished, or if newer runs are passed over.

    Raises:
        ToolkitError: no such file or run, or the run has completed no epoch.
    """
    if target is not None and os.path.lexists(target) and not os.path.isdir(target):
        return Path(target)
    if target is not None and Path(target).suffix in (".onnx", ".pt"):
        raise ToolkitError(f"no such file: {escape(target)}")
    run = find_newest_finished_run(data=data, root=root, note=note) if target is None else open_run(target, root=root)
    if not run.best.is_file():
        raise ToolkitError(f"the run {run.path} has completed no epoch: `cifar train --resume {run.path}`")
    if not run.is_finished:
        note(f"The run {run.path} is unfinished: using its best epoch so far")
    return run.best


def _read_mtime(path: Path) -> float:
    return path.stat().st_mtime


def _find_in_runs(root: Path, file: str) -> list[Path]:
    """List the files of that name in all runs under `root`, including those of several seeds.

    Skips hidden folders: they are still being created.
    """
    found = [*root.glob(f"*/{file}"), *root.glob(f"*/seed*/{file}")]
    return [path for path in found if not path.relative_to(root).parts[0].startswith(".")]
