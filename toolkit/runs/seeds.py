"""One recipe trained with several seeds: a run folder for each seed in one folder, and mean and spread over them.

    together = begin_seeds(recipe, seeds=5, source=source, name="fast-resnet20-seeds")
    for run in together.unfinished():
        for record in train(run.recipe(), source=source, run=run, resume=True):
            ...
    summary = together.write_summary()

makes `runs/fast-resnet20-seeds/seed0` to `seed4`, each what a training by itself with that seed would make, and goes on
where it was when it was interrupted. All folders are made before the first is trained: what is still missing can be
seen, so no summary leaves a seed out.
"""

import json
import re
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.data.dataset import DataSource, data_identity, require_same_data
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import replacing
from toolkit.recipes.recipe import Recipe, recipe_keys
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint, teacher_identity
from toolkit.runs.folder import RUNS, RunFolder, require_name

FIGURES = (  # of a seed, over which the summary takes mean and spread; those that need validation images may be absent
    "best_val_accuracy", "val_accuracy", "val_loss", "train_accuracy", "train_loss", "generalisation_gap",
    "training_seconds",
)  # fmt: skip
CIRCUMSTANCES = (
    "model", "parameters", "epochs", "train_images", "val_images", "device", "step", "precision", "data", "teacher",
    "libraries",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds, in the figure's own unit.

    Attributes:
        mean: over all seeds.
        std: the sample's standard deviation, with n - 1 in the denominator; None for one seed.
        min: the smallest value, which of an accuracy is the worst seed's.
        n: how many seeds.
    """

    mean: float
    std: float | None
    min: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Mean, standard deviation, minimum and number of `values`, of which there is at least one."""
    numbers = list(values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(mean=statistics.fmean(numbers), std=std, min=min(numbers), n=len(numbers))


@dataclass(frozen=True)
class SeedRuns:
    """The runs of one recipe with the seeds 0 to n - 1: `<path>/seed0`, `<path>/seed1`, ..., and `seeds.json`.

    Attributes:
        path: the folder.
        n: how many seeds it is to hold, finished or not.
    """

    path: Path
    n: int

    @property
    def runs(self) -> tuple[RunFolder, ...]:
        return tuple(RunFolder(self.path / f"seed{seed}") for seed in range(self.n))

    @property
    def summary(self) -> Path:
        return self.path / "seeds.json"

    def unfinished(self) -> list[RunFolder]:
        """The runs that are still to be trained, or to be gone on with."""
        return [run for run in self.runs if not run.is_finished]

    def require_finished(self) -> None:
        """Refuse to report on seeds of which one is missing.

        Raises:
            ToolkitError: a run is not finished, or is of another recipe than seed 0's.
        """
        if missing := self.unfinished():
            names = ", ".join(run.path.name for run in missing)
            raise ToolkitError(
                f"of the {self.n} seeds in {self.path} these are not finished: {names}. The command that began them "
                f"goes on with them, `cifar train --resume {missing[0].path}` with one"
            )
        if other := _other_recipe(self, self.runs[0].recipe()):
            raise ToolkitError(f"{other}: undo the change to its recipe.toml")

    def write_summary(self) -> dict[str, Any]:
        """Write `seeds.json` and return it: mean, standard deviation and minimum of each figure, and each seed's own.

        What was the same for all seeds (device, data, libraries, ...) stands once, what was not with each seed.

        Raises:
            ToolkitError: a run is not finished, or the file cannot be written.
        """
        self.require_finished()
        summaries = [run.read_summary() for run in self.runs]
        rows = [_figures_of(summary) for summary in summaries]
        common: dict[str, Any] = {}
        for name in CIRCUMSTANCES:
            values = [summary[name] for summary in summaries]
            if all(value == values[0] for value in values):
                common[name] = values[0]
            else:
                for row, value in zip(rows, values, strict=True):
                    row[name] = value
        present = [name for name in FIGURES if rows[0][name] is not None]
        figures = {name: asdict(spread(row[name] for row in rows)) for name in present}
        result = {"n": self.n, **common, "figures": figures, "seeds": rows}
        with replacing(self.summary) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return result


def _figures_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The row of one seed, from its `summary.json`: accuracies in [0, 1], losses in nats."""
    best, last = summary["best"], summary["last"]
    return {
        "seed": summary["seed"],
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["validation"]["accuracy"] if best["validation"] else None,
        **{name: last[name] for name in FIGURES if name in last},
        "training_seconds": summary["training_seconds"],
    }


def begin_seeds(
    recipe: Recipe,
    *,
    seeds: int,
    source: DataSource,
    name: str,
    root: Path = RUNS,
    teacher: Checkpoint | None = None,
) -> SeedRuns:
    """Make the run folders of the seeds 0 to `seeds` - 1, or find those that an interrupted call has made.

    Finished runs stay as they are; the others are trained, or gone on with, by `train(..., resume=True)`. More seeds
    than before may be asked for, but not fewer.

    Args:
        recipe: its own seed does not count.
        seeds: how many.
        source: the data; only their identity is read, and only where runs have been begun.
        name: of the folder under `root`.
        root: the folder of runs.
        teacher: the one that `train` will be given.

    Raises:
        UsageError: fewer than one seed, or fewer than there are; the folder holds runs of another recipe, or is a run
            itself; no plain folder name.
        ToolkitError: the runs were begun on other data, or with another teacher; a file cannot be read or written.
    """
    if seeds < 1:
        raise UsageError(f"the number of seeds must be a whole number from 1, not {seeds}")
    require_name(name)
    path = root / name
    if (path / "recipe.toml").exists():
        raise UsageError(f"{path} is a run by itself, so it takes no seeds: give another --name")
    begun = open_seeds(path)
    if begun is not None:
        if begun.n > seeds:
            raise UsageError(
                f"{path} has {begun.n} seeds, and none may be left out: ask for {begun.n} or more, or give another "
                "--name"
            )
        if other := _other_recipe(begun, recipe):
            raise UsageError(f"{other}: give that recipe again, or another --name")
        _require_origin(begun, source, teacher)
    together = SeedRuns(path, seeds)
    for seed, run in enumerate(together.runs):
        if not (run.path / "recipe.toml").is_file():
            run.write_recipe(_with_seed(recipe, seed))
    return together


def find_seeds(name_or_path: str, *, root: Path = RUNS) -> SeedRuns | None:
    """The runs of several seeds by the path of their folder, or by its name under `root`; None where there are none."""
    return open_seeds(Path(name_or_path)) or open_seeds(root / name_or_path)


def open_seeds(path: Path) -> SeedRuns | None:
    """The runs in the folder `path`, up to the highest seed that it holds; None where it holds none."""
    numbers = [re.fullmatch(r"seed(\d+)", recipe.parent.name) for recipe in path.glob("seed*/recipe.toml")]
    found = [int(match[1]) for match in numbers if match]
    return SeedRuns(path, max(found) + 1) if found else None


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return recipe.replaced({"run": {"seed": seed}})


def _other_recipe(begun: SeedRuns, recipe: Recipe) -> str | None:
    """Figures of different recipes have no mean: the run that has another, and the keys that differ; None if none."""
    for seed, run in enumerate(begun.runs):
        if not (run.path / "recipe.toml").is_file():
            continue  # it will be made
        wanted, found = _with_seed(recipe, seed), run.recipe()
        if wanted != found:
            return f"{run.path} was begun with another recipe ({_differences(found, wanted)})"
    return None


def _differences(before: Recipe, now: Recipe) -> str:
    values, wanted = before.as_dict(), now.as_dict()
    pairs = [
        (key.name, *((table[key.table] if key.table else table)[key.name] for table in (values, wanted)))
        for key in recipe_keys()
    ]
    return ", ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in pairs if old != new)


def _require_origin(begun: SeedRuns, source: DataSource, teacher: Checkpoint | None) -> None:
    """Figures of different data or teachers have no mean either."""
    trained = [run for run in begun.runs if run.last.is_file()]
    if trained:  # else nothing has been trained, and the images need not be read
        present = data_identity(source.name, source.train())
        identity = teacher_identity(teacher) if teacher else None
        for run in trained:
            last = load_checkpoint(run.last)
            require_same_data(last.data, present, what=f"the run {run.path}")
            if last.teacher != identity:
                raise ToolkitError(f"the run {run.path} was begun with another teacher: give that one again")
