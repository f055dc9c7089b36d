"""Predict many pictures in parts: each job predicts one part of the list into one file."""

import contextlib
import functools
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.cluster.jobs import Engine, Job, Outcome, describe_failures
from toolkit.cluster.parts import MAX_PART_SIZE, PART_SIZE, PartsFolder, Plan, begin_plan
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import as_text, escape, replacing
from toolkit.inference.model_file import find_model
from toolkit.inference.output_format import format_predictions
from toolkit.inference.paths import STDIN, Failure, PathLike, expand
from toolkit.inference.pipeline import BATCH_SIZE, Prediction, check_options, classify
from toolkit.inference.session import Session, open_model
from toolkit.interrupt import describe_interrupt
from toolkit.reporting import Progress, ignore

FORMATS = ("csv", "jsonl")


@dataclass(frozen=True)
class PartsWritten:
    """A folder whose parts are all complete.

    Attributes:
        folder: with the parts.
        pictures: number of pictures, readable or not.
        parts: number of parts.
        kept: parts that were complete before.
        missing: paths that name no picture.
    """

    folder: Path
    pictures: int
    parts: int
    kept: int
    missing: tuple[Failure, ...]

    @functools.cached_property
    def failure_count(self) -> int:
        return sum(1 for _ in self.failures())

    def failures(self) -> Iterator[str]:
        """The errors of all pictures without a prediction."""
        yield from (failure.error for failure in self.missing)
        folder = PartsFolder(self.folder)
        for number in range(self.parts):
            if os.path.lexists(folder.errors(number)):
                yield from folder.read_errors(number)


def predict_to_folder(
    engine: Engine,
    paths: Iterable[PathLike],
    out: Path,
    *,
    model: PathLike | None = None,
    format: str = "csv",
    top: int = 1,
    batch_size: int = BATCH_SIZE,
    part_size: int = PART_SIZE,
    progress: Progress = ignore,
) -> PartsWritten:
    """Predict every picture that `paths` name, each into exactly one part file of the folder `out`.

    Finished parts are kept: repeat an interrupted command to resume it. `toolkit.cluster.parts` describes the files.

    Args:
        engine: where the parts are predicted, each on one processor core.
        paths: files, folders and globs, on storage that the engine's machines see.
        out: folder to fill, on such storage; created if it does not exist.
        model: as `find_model` takes it.
        format: "csv" or "jsonl"; each part is what `cifar predict --format` prints for its pictures.
        top: how many classes each prediction lists.
        batch_size: see `classify`.
        part_size: pictures in a part.
        progress: called with the pictures in finished parts, and with all.

    Raises:
        UsageError: an option is out of range; a path is standard input.
        ToolkitError: `out` holds other parts; parts failed, the others are finished; a file cannot be written.
        KeyboardInterrupt: interrupted; its message gives the number of pictures that are done.
    """
    named = list(paths)
    if STDIN in named:
        raise UsageError("standard input cannot be written as parts: leave out --out and --on")
    if format not in FORMATS:
        raise UsageError(f"parts are written as {' or '.join(FORMATS)}, not {format}")
    if not 1 <= part_size <= MAX_PART_SIZE:
        raise UsageError(f"a part holds 1 to {MAX_PART_SIZE:,} pictures, not {part_size}")
    path = find_model(model)
    class_names = open_model(path, provider="cpu", threads=1).class_names
    check_options(batch_size=batch_size, top=top, class_count=len(class_names))
    folder = PartsFolder(out.absolute())
    missing: list[Failure] = []
    with folder.lock():
        folder.remove_leftovers()
        pictures = _without_failures(expand(named), missing)
        plan = begin_plan(
            folder,
            pictures,
            working_folder=_working_folder(named),
            model=path,
            format=format,
            top=top,
            part_size=part_size,
        )
        finished = {number for number in range(len(plan.offsets)) if folder.part(number, format).is_file()}
        _run_parts(engine, folder, plan, finished, batch_size=batch_size, progress=progress)
        folder.remove_leftovers()
    return PartsWritten(out, plan.pictures, len(plan.offsets), len(finished), tuple(missing))


def _working_folder(paths: Iterable[PathLike]) -> str:
    """Return the current folder; the root, which every machine has, if all paths are absolute."""
    current = Path.cwd()
    return current.anchor if all(Path(path).is_absolute() for path in paths) else str(current)


def _without_failures(sources: Iterable[str | Failure], failures: list[Failure]) -> Iterator[str]:
    for source in sources:
        if isinstance(source, Failure):
            failures.append(source)
        else:
            yield source


def _run_parts(
    engine: Engine, folder: PartsFolder, plan: Plan, finished: set[int], *, batch_size: int, progress: Progress
) -> None:
    numbers = [number for number in range(len(plan.offsets)) if number not in finished]
    pictures = {_job_name(number): _count_pictures(plan, number) for number in numbers}
    jobs = (make_part_job(folder, plan, number, batch_size=batch_size) for number in numbers)
    failures: list[Outcome] = []
    done = sum(_count_pictures(plan, number) for number in finished)
    progress(done, plan.pictures)

    def describe() -> str:
        return (
            f"interrupted; {done:,} of {plan.pictures:,} pictures are predicted in {escape(folder.path)}. Repeat the "
            "command to resume: finished parts are kept"
        )

    with describe_interrupt(describe), contextlib.closing(engine.run(jobs)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                failures.append(outcome)
            else:
                done += pictures[outcome.name]
                progress(done, plan.pictures)
    if failures:
        raise ToolkitError(
            f"{describe_failures(failures, of=len(numbers), kind='parts')}. The others are finished; repeat the "
            "command to try these again"
        )


def _count_pictures(plan: Plan, number: int) -> int:
    return min(plan.part_size, plan.pictures - number * plan.part_size)


def _job_name(number: int) -> str:
    return f"part {number}"


def make_part_job(folder: PartsFolder, plan: Plan, number: int, *, batch_size: int = BATCH_SIZE) -> Job:
    """Build the job that predicts one part."""
    arguments = {
        "folder": str(folder.path),
        "number": number,
        "offset": plan.offsets[number],
        "count": _count_pictures(plan, number),
        "working_folder": plan.working_folder,
        "format": plan.format,
        "top": plan.top,
        "batch_size": batch_size,
    }
    return Job(_job_name(number), predict_part, arguments)


def predict_part(
    *, folder: str, number: int, offset: int, count: int, working_folder: str, format: str, top: int, batch_size: int
) -> None:
    """Predict one part into its file; do nothing if it exists.

    Raises:
        ToolkitError: the model failed, or a file cannot be read or written.
    """
    parts = PartsFolder(Path(folder))
    part = parts.part(number, format)
    if part.exists():
        return
    session = _open_once(parts.model)
    with contextlib.chdir(working_folder):
        paths = parts.read_paths(offset, count)
        results = list(classify(session, paths, workers=1, batch_size=batch_size, top=top))
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        with replacing(parts.errors(number)) as temporary:
            rows = (json.dumps({"path": as_text(each.path), "error": each.error}) for each in failures)
            temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    else:
        parts.errors(number).unlink(missing_ok=True)  # of an earlier attempt that died before the part was complete
    predictions = (result for result in results if isinstance(result, Prediction))
    with replacing(part) as temporary:
        lines = format_predictions(predictions, format, top=top)
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _open_once(model: Path) -> Session:
    """Open the session of this process once, for all its parts."""
    warnings.simplefilter("ignore")  # Pillow's, about damaged pictures
    return open_model(model, provider="cpu", threads=1)
