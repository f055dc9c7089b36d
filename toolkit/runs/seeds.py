"""Several seeds of one recipe: one folder of run folders, and mean and spread over them.

    seed_runs = begin_seeds(recipe, seeds=5, source=source, name="fast-resnet20-seeds")
    for run in seed_runs.find_unfinished():
        train(run.read_recipe(), source=source, run=run, resume=True)
    summary = seed_runs.write_summary()

creates `runs/fast-resnet20-seeds/seed0` to `seed4`, each identical to a run of that seed alone. Repeating it resumes
after an interruption. All folders are created before the first is trained, so a summary cannot leave a seed out.
"""

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.data.dataset import DataSource, identify_data, require_same_data
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import replacing, shorten
from toolkit.recipes.recipe import Recipe, recipe_keys
from toolkit.runs.checkpoint import Checkpoint, identify_checkpoint, load_checkpoint
from toolkit.runs.folder import RUNS, RunFolder, require_name

MAX_SEEDS = 1_000

FIGURES = (  # summarized over the seeds; those that need validation images may be absent
    "best_val_accuracy", "val_accuracy", "val_macro_accuracy", "val_loss", "train_accuracy", "train_loss",
    "generalisation_gap", "training_seconds",
)  # fmt: skip
CONDITIONS = (  # recorded once if equal for all seeds, else for each seed
    "model", "parameters", "epochs", "train_images", "val_images", "device", "step", "precision", "data", "findings",
    "init", "teacher", "libraries",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds, in the figure's own unit.

    Attributes:
        mean: over all seeds.
        std: the sample's standard deviation, with n - 1 in the denominator; None for one seed.
        min: the smallest value.
        n: number of seeds.
    """

    mean: float
    std: float | None
    min: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Summarize at least one value."""
    numbers = list(values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(mean=statistics.fmean(numbers), std=std, min=min(numbers), n=len(numbers))


@dataclass(frozen=True)
class SeedRuns:
    """The runs of one recipe with the seeds 0 to n - 1: `<path>/seed0`, `<path>/seed1`, ..., and `seeds.json`.

    Attributes:
        path: the folder.
        n: number of seeds, finished or not.
    """

    path: Path
    n: int

    @property
    def runs(self) -> tuple[RunFolder, ...]:
        return tuple(RunFolder(self.path / f"seed{seed}") for seed in range(self.n))

    @property
    def summary(self) -> Path:
        return self.path / "seeds.json"

    def find_unfinished(self) -> list[RunFolder]:
        """The runs that still have to be trained or resumed."""
        return [run for run in self.runs if not run.is_finished]

    def require_finished(self) -> None:
        """Check that every seed is finished, with the same recipe.

        Raises:
            ToolkitError: a run is unfinished, or its recipe differs from seed 0's.
        """
        if missing := self.find_unfinished():
            names = ", ".join(run.path.name for run in missing)
            raise ToolkitError(
                f"of the {self.n} seeds in {self.path} these are unfinished: {names}. Repeat the command that began "
                f"them, or resume one with `cifar train --resume {missing[0].path}`"
            )
        if other := _find_other_recipe(self, self.runs[0].read_recipe()):
            raise ToolkitError(f"{other}: undo the change to its recipe.toml")

    def write_summary(self) -> dict[str, Any]:
        """Write `seeds.json` and return it: mean, standard deviation and minimum of each figure, and each seed's own.

        Conditions that are equal for all seeds (device, data, libraries, ...) are recorded once, others for each seed.

        Raises:
            ToolkitError: a run is unfinished, or the file cannot be written.
        """
        self.require_finished()
        summaries = [run.read_summary() for run in self.runs]
        rows = [_extract_figures(run, summary) for run, summary in zip(self.runs, summaries, strict=True)]
        common: dict[str, Any] = {}
        for name in CONDITIONS:
            values = [summary[name] for summary in summaries]
            if all(value == values[0] for value in values):
                common[name] = values[0]
            else:
                for row, value in zip(rows, values, strict=True):
                    row[name] = value
        present = [name for name in FIGURES if all(row.get(name) is not None for row in rows)]
        figures = {name: asdict(spread(row[name] for row in rows)) for name in present}
        result = {"n": self.n, **common, "figures": figures, "seeds": rows}
        with replacing(self.summary) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return result


def _extract_figures(run: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Extract the row of one seed from its `summary.json`: accuracies in [0, 1], losses in nats.

    Raises:
        ToolkitError: the file lacks a value, or has one of the wrong type.
    """
    try:
        best, last = summary["best"], summary["last"]
        row = {
            "seed": summary["seed"],
            "best_epoch": best["epoch"],
            "best_val_accuracy": best["validation"]["accuracy"] if best["validation"] else None,
            **{name: last[name] for name in FIGURES if name in last},
            "training_seconds": summary["training_seconds"],
        }
        missing = [name for name in CONDITIONS if name not in summary]
    except (LookupError, TypeError) as error:
        raise run.make_summary_error(shorten(repr(error))) from error
    odd = [name for name in FIGURES if not (row.get(name) is None or _is_number(row[name]))]
    odd += [name for name in ("seed", "parameters", "epochs") if not _is_number({**summary, **row}.get(name, 0))]
    if missing or odd:
        raise run.make_summary_error(f"{', '.join(missing + odd)} missing or not a number")
    return row


def _is_number(value: Any) -> bool:
    """Return whether a JSON value is a float or a 64-bit integer; Python may refuse to convert larger integers."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def begin_seeds(
    recipe: Recipe,
    *,
    seeds: int,
    source: DataSource,
    name: str,
    root: Path = RUNS,
    init: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
) -> SeedRuns:
    """Create the run folders of the seeds 0 to `seeds` - 1; keep those that exist.

    `train(..., resume=True)` trains or resumes those that are unfinished. A repeated call may ask for more seeds than
    before, but not for fewer.

    Args:
        recipe: its own seed is ignored.
        seeds: number of seeds.
        source: the data; read only if some runs have been trained, to compare identities.
        name: of the folder under `root`.
        root: the folder of runs.
        init: the checkpoint that every run starts from; None for random weights.
        teacher: the checkpoint that every run distills from; None without distillation.

    Raises:
        UsageError: fewer than one seed, more than `MAX_SEEDS`, or fewer than exist; the folder holds runs of another
            recipe, or is a single run; `name` cannot name a folder.
        ToolkitError: the existing runs have other data, initial weights or teacher; a file cannot be read or written.
    """
    if not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"the number of seeds must be a whole number from 1 to {MAX_SEEDS:,}, not {seeds}")
    require_name(name)
    path = root / name
    if (path / "recipe.toml").exists():
        raise UsageError(f"{path} is a single run, which cannot hold seeds: choose another --name")
    begun = open_seeds(path)
    if begun is not None:
        if begun.n > seeds:
            raise UsageError(
                f"{path} has {begun.n} seeds, and none may be left out: ask for {begun.n} or more, or choose "
                "another --name"
            )
        if other := _find_other_recipe(begun, recipe):
            raise UsageError(f"{other}: use that recipe, or another --name")
        _require_same_inputs(begun, init, teacher)
        _require_same_data(begun, source)
    seed_runs = SeedRuns(path, seeds)
    for seed, run in enumerate(seed_runs.runs):
        if not run.recipe_path.is_file():
            run.write_inputs(_set_seed(recipe, seed), init, teacher)
    return seed_runs


def require_one_data_set(runs: Sequence[RunFolder]) -> None:
    """Raise `ToolkitError` if finished runs have other data: machines found them under the same path."""
    data = {run.path.name: run.read_summary()["data"] for run in runs}
    first = runs[0].path.name
    if others := [name for name, found in data.items() if found != data[first]]:
        raise ToolkitError(
            f"the data differ between machines: {', '.join(others)} had other data than {first}. Make the same data "
            "visible to all, remove these run folders and repeat the command"
        )


def find_seeds(name_or_path: str, *, root: Path = RUNS) -> SeedRuns | None:
    """Open a folder of seeds by its path, or by its name under `root`; None if it holds no seeds."""
    return open_seeds(Path(name_or_path)) or open_seeds(root / name_or_path)


def open_seeds(path: Path) -> SeedRuns | None:
    """Open the folder of seeds `path`, up to the highest seed in it; None if it holds no seeds."""
    names = (recipe.parent.name for recipe in path.glob("seed*/recipe.toml"))
    numbers = [int(match[1]) for name in names if (match := re.fullmatch(r"seed(0|[1-9][0-9]{0,5})", name))]
    found = [number for number in numbers if number < MAX_SEEDS]
    return SeedRuns(path, max(found) + 1) if found else None


def _set_seed(recipe: Recipe, seed: int) -> Recipe:
    return recipe.replace({"run": {"seed": seed}})


def _find_other_recipe(begun: SeedRuns, recipe: Recipe) -> str | None:
    """Describe the first run whose recipe differs from `recipe`, with the keys that differ; None if all agree."""
    for seed, run in enumerate(begun.runs):
        if not run.recipe_path.is_file():
            continue  # not yet created
        wanted, found = _set_seed(recipe, seed), run.read_recipe()
        if wanted != found:
            return f"{run.path} has another recipe ({_describe_differences(found, wanted)})"
    return None


def _describe_differences(before: Recipe, now: Recipe) -> str:
    values, wanted = before.as_dict(), now.as_dict()
    pairs = [
        (key.name, *((table[key.table] if key.table else table)[key.name] for table in (values, wanted)))
        for key in recipe_keys()
    ]
    return ", ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in pairs if old != new)


def _require_same_inputs(begun: SeedRuns, init: Checkpoint | None, teacher: Checkpoint | None) -> None:
    """Raise `ToolkitError` if existing runs start from other weights, or distill from another teacher.

    A run that has not begun may still lack its teacher.
    """
    for run in begun.runs:
        if not run.recipe_path.is_file():
            continue  # not yet created
        if not _holds(run.init, init):
            raise ToolkitError(f"the run {run.path} starts from other weights: use the same --init, or another --name")
        if (run.teacher.is_file() or run.last.is_file()) and not _holds(run.teacher, teacher):
            raise ToolkitError(f"the run {run.path} has another teacher: use the same --teacher, or another --name")


def _holds(path: Path, checkpoint: Checkpoint | None) -> bool:
    """Whether the file holds this checkpoint, or is missing as it is."""
    found = identify_checkpoint(load_checkpoint(path)) if path.is_file() else None
    return found == (identify_checkpoint(checkpoint) if checkpoint else None)


def _require_same_data(begun: SeedRuns, source: DataSource) -> None:
    """Raise `ToolkitError` if trained runs have other data."""
    trained = [run for run in begun.runs if run.last.is_file()]
    if trained:  # else the images need not be read
        present = identify_data(source.name, source.train())
        for run in trained:
            require_same_data(load_checkpoint(run.last).data, present, what=f"the run {run.path}")
