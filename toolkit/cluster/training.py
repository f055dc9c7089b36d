"""Train the seeds of one recipe as jobs: each in its run folder, resumed by whichever process runs it again."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from toolkit.cluster.engines import open_training_engine
from toolkit.cluster.jobs import Engine, Job, Outcome, describe_failures
from toolkit.data import cifar
from toolkit.data.dataset import DataSource, PictureSource, find_data
from toolkit.errors import ToolkitError
from toolkit.reporting import Note, Progress, ignore
from toolkit.runs.folder import RunFolder
from toolkit.training.launch import LaunchOptions
from toolkit.training.step import StepMode
from toolkit.training.tensorboard import tensorboard_log
from toolkit.training.trainer import train

# How long a job waits for the lock of its run: a lost machine may still hold it for a while.
LOCK_SECONDS = 60.0


def train_on_engine(
    options: LaunchOptions,
    runs: Sequence[RunFolder],
    source: DataSource,
    *,
    progress: Progress = ignore,
    note: Note = ignore,
) -> None:
    """Train runs as `train_seeds`, on the engine that `options.on` names.

    Raises:
        UsageError, ToolkitError: as `open_training_engine` and `train_seeds`.
    """
    engine = open_training_engine(options.on or "local", device=options.device, gpu_share=options.gpu_share)
    train_seeds(engine, runs, source=source, options=options, progress=progress, note=note)


def train_seeds(
    engine: Engine,
    runs: Sequence[RunFolder],
    *,
    source: DataSource,
    options: LaunchOptions,
    progress: Progress = ignore,
    note: Note = ignore,
) -> None:
    """Train runs to the end, or resume them, as jobs of an engine.

    A resumed run is bit-identical to an uninterrupted one on the same hardware with as many processor threads.

    Args:
        engine: runs the jobs.
        runs: unfinished runs of one recipe, created on storage that the engine's machines see.
        source: the data set, found on every machine at the same path.
        options: device, kind of step and TensorBoard.
        progress: called with the completed and the total epochs of all runs.
        note: called with one line for each run that ends.

    Raises:
        ToolkitError: some runs failed; the others are finished.
    """
    jobs = [make_seed_job(run, source=source, options=options) for run in runs]
    epochs = sum(run.read_recipe().epochs for run in runs)
    failures: list[Outcome] = []

    def report_progress() -> None:
        progress(sum(run.count_epochs() for run in runs), epochs)

    report_progress()
    with contextlib.closing(engine.run(jobs, on_wait=report_progress)) as outcomes:
        for outcome in outcomes:
            note(f"{outcome.name}: {outcome.error or 'finished'}")
            if outcome.error is not None:
                failures.append(outcome)
    report_progress()
    if failures:
        raise ToolkitError(
            f"{describe_failures(failures, of=len(jobs), kind='seeds')}. The others are finished; repeat the command "
            "to resume these"
        )


def make_seed_job(run: RunFolder, *, source: DataSource, options: LaunchOptions) -> Job:
    """The job that trains one seed."""
    arguments = {
        "run": str(run.path.resolve()),
        "data": source.name,
        "folder": str(source.folder.resolve()) if source.folder else None,
        "skip_damaged": isinstance(source, PictureSource) and source.skip_damaged,
        "device": options.device,
        "step": options.step,
        "tensorboard": options.tensorboard,
    }
    return Job(run.path.name, train_seed, arguments)


def train_seed(
    *, run: str, data: str, folder: str | None, skip_damaged: bool, device: str, step: StepMode, tensorboard: bool
) -> None:
    """Train one seed in its run folder, or resume it there; do nothing if it is finished.

    Raises:
        ToolkitError, UsageError: as `train` and `find_data`; another process trains in the folder.
    """
    run_folder = RunFolder(Path(run))
    run_folder.wait_until_free(LOCK_SECONDS)
    if run_folder.is_finished:
        return
    with tensorboard_log(run_folder.path) if tensorboard else contextlib.nullcontext(ignore) as log:
        train(
            run_folder.read_recipe(),
            source=_open_source(data, folder, skip_damaged=skip_damaged),
            run=run_folder,
            device=device,
            resume=run_folder.last.is_file(),
            mode=step,
            on_epoch=log,
        )


def _open_source(name: str, folder: str | None, *, skip_damaged: bool) -> DataSource:
    """Find the data by name and path: a folder may hold both CIFAR-10 and CIFAR-100."""
    if folder is None:
        return find_data(name)
    if which := cifar.BY_NAME.get(name):
        return DataSource(name=name, folder=Path(folder), class_names=which.class_names)
    return find_data(folder, skip_damaged=skip_damaged)
