"""Run `cifar train`: start a new run, resume an interrupted one, or train several seeds of one recipe."""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from toolkit.data.dataset import PICTURES, DataSource, PictureSource, find_data, identify_data
from toolkit.device import choose_device
from toolkit.errors import UsageError
from toolkit.interrupt import describe_interrupt
from toolkit.recipes.recipe import Recipe, load_recipe, preset_names, scale_warmup
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint
from toolkit.runs.folder import (
    RUNS,
    RunFolder,
    create_run,
    find_checkpoint,
    find_runs_of,
    find_unfinished_run,
    open_run,
    require_name,
)
from toolkit.runs.location import DataLocation, find_training_data
from toolkit.runs.seeds import SeedRuns, begin_seeds, open_seeds, require_one_data_set
from toolkit.training.distillation import make_teacher_recipe
from toolkit.training.initialize import load_initial
from toolkit.training.step import StepMode, choose_mode
from toolkit.training.tensorboard import require_tensorboard, tensorboard_log
from toolkit.training.trainer import EpochRecord, train

GPU_SHARE = 0.25  # several of these small trainings fit one GPU
DISTILLATION_WEIGHT = 0.9  # with a teacher, unless the recipe has one; as in the trials in results/README.md
PICTURES_VAL_SIZE = 0.1  # of a preset on the user's own pictures: the presets' own numbers are meant for CIFAR-10


@dataclass(frozen=True)
class LaunchOptions:
    """The options of `cifar train`.

    Attributes:
        recipe: a preset or a file; None for `reference`, or with `init` for `finetune`.
        changes: keys of the recipe that replace its own, nested as in a recipe file.
        data: as `find_data` takes it.
        skip_damaged: continue without pictures that cannot be read.
        init: a run, a checkpoint or "shipped" to start from; None for random weights.
        teacher: a run or a checkpoint to distill from; if None, a recipe with distillation trains one first, by the
            preset `teacher`, or takes it from the folder of runs.
        name: of the run's folder, or of the folder of seeds; None for one made from recipe, model and seed.
        runs: the folder of runs.
        resume: a run to resume, by name or path.
        seeds: train the seeds 0 to N - 1; finished ones are kept, interrupted ones resumed.
        device, step: as `train` takes them.
        tensorboard: also write event files into the run folder.
        on: where several seeds are trained: "local", "ray" or an address; None for one after the other in this process.
        gpu_share: of one GPU for each seed, with `on`.
    """

    recipe: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    skip_damaged: bool = False
    init: str | None = None
    teacher: str | None = None
    name: str | None = None
    runs: Path = RUNS
    resume: str | None = None
    seeds: int | None = None
    device: str = "auto"
    step: StepMode = "auto"
    tensorboard: bool = False
    on: str | None = None
    gpu_share: float = GPU_SHARE

    def resume_command(self, *arguments: str) -> str:
        """The command that resumes, with the options that the interrupted one had."""
        words = ["cifar", "train", *arguments]
        words += ["--data", self.data] if self.data else []
        words += ["--skip-damaged"] if self.skip_damaged else []
        words += ["--device", self.device] if self.device != "auto" else []
        words += ["--step", self.step] if self.step != "auto" else []
        words += ["--tensorboard"] if self.tensorboard else []
        words += ["--on", self.on] if self.on else []
        words += ["--gpu-share", str(self.gpu_share)] if self.gpu_share != GPU_SHARE else []
        return shlex.join(words)


@dataclass(frozen=True)
class LaunchResult:
    """A finished launch.

    Attributes:
        path: the run folder, or the folder of seeds.
        summary: the contents of its `summary.json` or `seeds.json`.
        several: whether `path` is a folder of seeds.
    """

    path: Path
    summary: dict[str, Any]
    several: bool


class Display(Protocol):
    """Shows the progress of one run; a context manager."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...
    def epoch(self, record: EpochRecord) -> None: ...
    def step(self, done: int, images: int) -> None: ...
    def note(self, line: str) -> None: ...


MakeDisplay = Callable[..., Display]  # (recipe, *, epochs_done, suggest_fast)
TrainOnEngine = Callable[[LaunchOptions, Sequence[RunFolder], DataSource], None]


def launch(
    options: LaunchOptions,
    *,
    display: MakeDisplay,
    note: Note = ignore,
    train_on_engine: TrainOnEngine | None = None,
    **data_callbacks: Any,
) -> LaunchResult:
    """Train as the options request. Options, names and recipe are validated before the data are fetched.

    Args:
        options: see `LaunchOptions`.
        display: makes the display of one run: `toolkit.display.TrainingDisplay`.
        note: called with one line before each run.
        train_on_engine: trains the unfinished seeds on the engine `options.on`; not used if that is None.
        data_callbacks: `progress` and `on_pictures` of `find_data`.

    Raises:
        KeyboardInterrupt: interrupted; its message names the command that resumes.
        ToolkitError, UsageError: as `train`, `load_recipe`, `create_run`, `begin_seeds` and `find_data`.
    """
    if options.on in (None, "local"):  # else the cluster's devices count
        choose_mode(options.step, choose_device(options.device))
    if options.name is not None:
        require_name(options.name)
    if options.tensorboard:
        require_tensorboard()
    if options.on is not None and options.seeds is None:
        raise UsageError("--on trains several seeds at once: give their number with --seeds N")
    launcher = _Launcher(options, display, note, train_on_engine if options.on is not None else None, data_callbacks)
    if options.resume is not None:
        return launcher.resume_run(options.resume)
    if options.seeds is not None:
        return launcher.train_seeds(options.seeds)
    return launcher.train_new_run()


class _Launcher:
    """Options and callbacks of one launch."""

    def __init__(
        self,
        options: LaunchOptions,
        display: MakeDisplay,
        note: Note,
        train_on_engine: TrainOnEngine | None,
        data_callbacks: dict[str, Any],
    ) -> None:
        self.options, self.display, self.note = options, display, note
        self.train_on_engine, self.data_callbacks = train_on_engine, data_callbacks

    def resume_run(self, name: str) -> LaunchResult:
        options = self.options
        if options.seeds is not None:
            raise UsageError("--resume resumes one run: leave out --seeds, which resumes its own runs by itself")
        if options.changes or options.name or options.recipe or options.init or options.teacher:
            raise UsageError(
                "--resume uses the run's own recipe, initial weights and teacher: leave out --recipe, --name, --init, "
                "--teacher and the flags of the recipe"
            )
        run = open_run(name, root=options.runs)
        if run.is_finished:
            raise UsageError(f"the run {run.path} is finished: there is nothing to resume")
        source = self._find_training_data(run.last)
        self._provide_teacher([run], source)
        return self._train(run, source=source, resume=True)

    def train_new_run(self) -> LaunchResult:
        init, teacher = self._init(), self._teacher()
        recipe = self._recipe(init)
        source = self._find_data()
        self._suggest_init(source)
        recipe = self._fit_to_data(recipe, source)
        stem = f"{self._stem(recipe)}-seed{recipe.run.seed}"
        if self.options.name is None and (unfinished := find_unfinished_run(stem, root=self.options.runs)):
            self.note(
                f"{unfinished.path} is unfinished; this starts a new run. To resume that one instead: "
                f"{self.options.resume_command('--resume', str(unfinished.path))}"
            )
        name, root = self.options.name, self.options.runs
        run = create_run(recipe, stem=stem, name=name, root=root, init=init, teacher=teacher)
        with _remove_if_not_begun(run):
            self._record_location(run, source)
            self._provide_teacher([run], source)
            return self._train(run, source=source)

    def train_seeds(self, seeds: int) -> LaunchResult:
        init, teacher = self._init(), self._teacher()
        recipe = self._recipe(init)
        if "seed" in self.options.changes.get("run", {}):
            raise UsageError("--seeds N trains the seeds 0 to N - 1: leave out --seed")
        name = self.options.name or f"{self._stem(recipe)}-seeds"
        root = self.options.runs
        source = self._find_training_data(root / name / "seed0" / "last.pt")
        self._suggest_init(source)
        recipe = self._fit_to_data(recipe, source)
        begun = open_seeds(root / name)
        existing = [run.path for run in begun.runs if run.path.exists()] if begun else []
        if teacher is None and begun is not None and begun.runs[0].teacher.is_file():
            teacher = load_checkpoint(begun.runs[0].teacher)
        seed_runs = begin_seeds(recipe, seeds=seeds, source=source, name=name, root=root, init=init, teacher=teacher)
        with _remove_if_not_begun(*seed_runs.runs, keep=existing):
            unfinished = seed_runs.find_unfinished()
            for run in unfinished:
                self._record_location(run, source)
            self._provide_teacher(unfinished, source)
            for run in seed_runs.runs:
                if run not in unfinished:
                    self.note(f"Finished before: {run.path}")
                elif self.train_on_engine is None:
                    self._train(run, source=source, resume=run.last.is_file(), seed_runs=seed_runs)
            if self.train_on_engine is not None and unfinished:
                self._train_on_engine(seed_runs, unfinished, source, self.train_on_engine)
        return LaunchResult(seed_runs.path, seed_runs.write_summary(), several=True)

    def _train_on_engine(
        self, seed_runs: SeedRuns, unfinished: list[RunFolder], source: DataSource, train_on_engine: TrainOnEngine
    ) -> None:
        self.note(f"Training {len(unfinished)} seeds on {source.name} with {self.options.on}, in {seed_runs.path}")

        def describe() -> str:
            if not _have_begun(*seed_runs.runs):
                return _NOTHING_KEPT
            finished = seed_runs.n - len(seed_runs.find_unfinished())
            return (
                f"interrupted; {finished} of {seed_runs.n} seeds are finished, and the completed epochs of the others "
                f"are kept in {seed_runs.path}. Resume with: {self._make_seeds_command(seed_runs)}"
            )

        with describe_interrupt(describe):
            train_on_engine(self.options, unfinished, source)
        require_one_data_set(seed_runs.runs)

    def _provide_teacher(self, runs: Sequence[RunFolder], source: DataSource) -> None:
        """Give new runs of a recipe with distillation the teacher that they lack.

        It is a run of the preset `teacher` on the same data in the folder of runs. If there is none, it is trained
        here; if it is unfinished, it is resumed.
        """
        lacking = [run for run in runs if not (run.teacher.is_file() or run.last.is_file())]
        if not lacking or (student := lacking[0].read_recipe()).distillation_weight == 0:
            return
        teacher = self._find_or_create_teacher(make_teacher_recipe(student), source)
        if teacher.is_finished:
            self.note(f"Teacher: {teacher.path}")
        else:
            self.note("This recipe distills from a teacher, which is trained first. --teacher names another")
            with _remove_if_not_begun(teacher):
                self._record_location(teacher, source)
                self._train_teacher(teacher, source)
        checkpoint = load_checkpoint(teacher.best)
        for run in lacking:
            run.write_teacher(checkpoint)

    def _find_or_create_teacher(self, recipe: Recipe, source: DataSource) -> RunFolder:
        root, identity = self.options.runs, identify_data(source.name, source.train())
        found = [run for run in find_runs_of(recipe, root=root) if load_checkpoint(run.last).data == identity]
        if found:
            return max(found, key=lambda run: run.is_finished)
        return create_run(recipe, stem=f"teacher-{recipe.run.model}-seed{recipe.run.seed}", root=root)

    def _train_teacher(self, teacher: RunFolder, source: DataSource) -> None:
        how_to_resume = "Repeat the command to resume this training of the teacher"
        if self.train_on_engine is None:
            self._train(teacher, source=source, resume=teacher.last.is_file(), how_to_resume=how_to_resume)
            return
        with describe_interrupt(lambda: _describe_progress(teacher, how_to_resume)):
            self.train_on_engine(self.options, [teacher], source)

    @property
    def _recipe_name(self) -> str:
        return self.options.recipe or ("finetune" if self.options.init else "reference")

    def _recipe(self, init: Checkpoint | None) -> Recipe:
        recipe = load_recipe(self._recipe_name)
        if init is not None and self.options.recipe is None:
            recipe = recipe.replace({"run": {"model": init.model}})
        changes = scale_warmup(recipe, self.options.changes)
        if "warmup_epochs" in changes and "warmup_epochs" not in self.options.changes:
            self.note(f"Warm-up scaled with the epochs, to {changes['warmup_epochs']:g} epochs")
        recipe = recipe.replace(changes)
        if self.options.teacher is not None and recipe.distillation_weight == 0:
            recipe = recipe.replace({"distillation_weight": DISTILLATION_WEIGHT})
        return recipe

    def _fit_to_data(self, recipe: Recipe, source: DataSource) -> Recipe:
        """On the user's own pictures, replace a preset's `val_size`, which is meant for CIFAR-10."""
        own_size = "val_size" in self.options.changes.get("run", {}) or self._recipe_name not in preset_names()
        if source.name != PICTURES or own_size or recipe.run.val_size in (0, PICTURES_VAL_SIZE):
            return recipe
        if source.val() is not None:  # the data set's own
            return recipe
        self.note(f"Validation: {PICTURES_VAL_SIZE:.0%} of the training pictures; --val-size changes that")
        return recipe.replace({"run": {"val_size": PICTURES_VAL_SIZE}})

    def _suggest_init(self, source: DataSource) -> None:
        if source.name == PICTURES and self.options.init is None and self.options.recipe is None:
            self.note(
                "From random weights; --init shipped starts from trained ones: better for few pictures, and faster"
            )

    def _record_location(self, run: RunFolder, source: DataSource) -> None:
        """Record where the pictures are, so that later commands find them without --data."""
        if isinstance(source, PictureSource) and source.folder is not None:
            DataLocation(source.folder, skip_damaged=source.skip_damaged).write(run.path)

    def _stem(self, recipe: Recipe) -> str:
        """Return the default name without the seed: recipe (or the run folder of a recipe.toml) and model."""
        path = Path(self._recipe_name)
        name = path.parent.name if path.name == "recipe.toml" and path.parent.name else path.stem
        return f"{name}-{recipe.run.model}"

    def _init(self) -> Checkpoint | None:
        return None if self.options.init is None else load_initial(self.options.init, root=self.options.runs)

    def _teacher(self) -> Checkpoint | None:
        name = self.options.teacher
        return None if name is None else load_checkpoint(find_checkpoint(name, root=self.options.runs))

    def _find_data(self) -> DataSource:
        options = self.options
        return find_data(options.data, skip_damaged=options.skip_damaged, note=self.note, **self.data_callbacks)

    def _find_training_data(self, checkpoint: Path) -> DataSource:
        """Find the data that the options name; by default, the data of the run that is resumed."""
        options = self.options
        recorded = load_checkpoint(checkpoint).data if options.data is None and checkpoint.is_file() else {}
        return find_training_data(
            recorded,
            data=options.data,
            model=checkpoint,
            skip_damaged=options.skip_damaged,
            note=self.note,
            **self.data_callbacks,
        )

    def _make_seeds_command(self, seed_runs: SeedRuns) -> str:
        """The command that resumes these seeds."""
        options = self.options
        recipe = str(seed_runs.runs[0].recipe_path)  # its own seed does not count
        arguments = ["--seeds", str(seed_runs.n), "--recipe", recipe, "--name", seed_runs.path.name]
        arguments += ["--init", options.init] if options.init else []
        arguments += ["--teacher", options.teacher] if options.teacher else []
        arguments += ["--runs", str(options.runs)] if options.runs != RUNS else []
        return options.resume_command(*arguments)

    def _train(
        self,
        run: RunFolder,
        *,
        source: DataSource,
        resume: bool = False,
        seed_runs: SeedRuns | None = None,
        how_to_resume: str | None = None,
    ) -> LaunchResult:
        """Train one run, alone or as one of `seed_runs`, and show its progress.

        `how_to_resume` ends the message of an interrupted run; by default, it names the command that resumes it.
        """
        recipe, options = run.read_recipe(), self.options
        if source.name == PICTURES:
            source.train()  # decodes the pictures before the display of the run is shown
        self.note(f"{'Resuming' if resume else 'Training'} {recipe.run.model} on {source.name}, in {run.path}")
        suggest_fast = not resume and source.name == "cifar10" and self._recipe_name == "reference"
        shown = self.display(recipe, epochs_done=len(run.read_metrics()), suggest_fast=suggest_fast)
        log_to_tensorboard = tensorboard_log(run.path) if options.tensorboard else contextlib.nullcontext(ignore)

        def describe() -> str:
            resume_one = options.resume_command("--resume", str(run.path))
            command = self._make_seeds_command(seed_runs) if seed_runs else resume_one
            how = how_to_resume or f"Resume with: {command}"
            return _describe_progress(run, how, group=seed_runs.runs if seed_runs else ())

        with describe_interrupt(describe), shown, log_to_tensorboard as log:

            def on_epoch(record: EpochRecord) -> None:
                log(record)
                shown.epoch(record)

            summary = train(
                recipe,
                source=source,
                run=run,
                device=options.device,
                resume=resume,
                mode=options.step,
                on_epoch=on_epoch,
                on_progress=shown.step,
                note=shown.note,
            )
        return LaunchResult(run.path, summary, several=False)


_NOTHING_KEPT = "interrupted before the first checkpoint; nothing was kept"


def _describe_progress(run: RunFolder, how_to_resume: str, *, group: Sequence[RunFolder] = ()) -> str:
    """Describe an interrupted run; if it is one of a group, the others' checkpoints count as progress too."""
    if not _have_begun(run, *group):
        return _NOTHING_KEPT
    epochs = len(run.read_metrics())
    state = f"{epochs} of {run.read_recipe().epochs} epochs are kept in" if epochs else "no epoch was completed in"
    return f"interrupted; {state} {run.path}. {how_to_resume}"


def _have_begun(*runs: RunFolder) -> bool:
    """Whether any run has a checkpoint."""
    return any(run.last.exists() for run in runs)


@contextlib.contextmanager
def _remove_if_not_begun(*runs: RunFolder, keep: Sequence[Path] = ()) -> Iterator[None]:
    """Remove run folders after a failure before the first checkpoint: they hold nothing but their recipes.

    If any of several seeds has a checkpoint, all folders are kept, so that the summary includes every seed. The folders
    in `keep` are kept too: another process may have created them.
    """
    try:
        yield
    except BaseException:
        if not _have_begun(*runs):
            for run in runs:
                if run.path not in keep:
                    run.remove()
        raise
