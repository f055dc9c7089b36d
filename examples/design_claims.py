"""Repeat the experiments behind the design, and compare each of its claims with the measured figures.

    python design_claims.py [--recipe reference] [--seeds 3] [--epochs N] [--data DIR] [--output claims] [--only NAME]

Trains four networks with one recipe, then variants of that recipe with one change each, all with the same seeds. Writes
OUTPUT/claims.json and OUTPUT/claims.png. Repeat an interrupted command to resume it; finished runs are kept. --only
NAME trains and compares the named variants alone, and may be given more than once.

The default trains eight recipes with three seeds each for 150 epochs, which needs a GPU. On a CPU, start with
--recipe fast --epochs 10 --seeds 1.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.evaluate import evaluate_seeds
from toolkit.evaluation.plots import save_figure
from toolkit.training import (
    DataSource,
    EpochRecord,
    Recipe,
    RunFolder,
    begin_seeds,
    find_data,
    load_recipe,
    spread,
    train,
)

MODELS = ("m6", "resnet20", "resnet20-wide", "resnet32")
FIGURES = ("test", "validation", "train", "gap", "half-way")  # %: test at the best epoch, half-way on validation images
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t for 2 to 10 seeds, two-sided 95%


@dataclass(frozen=True)
class Claim:
    """A figure of one variant, or its difference from another variant's, lies between `low` and `high`, in points."""

    text: str
    figure: str
    of: str
    minus: str = ""
    low: float = 0.0
    high: float = math.inf


CLAIMS = (  # "about": within one point; "the high 80s": from 86 to 90
    Claim("resnet20: a generalization gap of about 8 points", "gap", "resnet20", low=7, high=9),
    Claim("resnet20-wide: a generalization gap of about 11 points", "gap", "resnet20-wide", low=10, high=12),
    Claim("resnet20-wide has a larger gap than resnet20", "gap", "resnet20-wide", "resnet20"),
    Claim("resnet20: validation in the high 80s by mid-training", "half-way", "resnet20", low=86, high=90),
    Claim("resnet20: at least 91% of the test images", "test", "resnet20", low=91),
    Claim("mixup helps", "validation", "mixup", "no mixup"),
    Claim("dropout helps", "validation", "dropout", "no dropout"),
    Claim("cosine is better than step decay", "validation", "cosine", "step decay"),
    Claim("SGD is better than Adam", "validation", "SGD", "Adam"),
)


def variants(base: Recipe) -> dict[str, Recipe]:
    """The recipe of each variant, by name. Usually one variant of each pair is the base recipe."""
    milestones = {epoch for epoch in (base.epochs // 2, -(-3 * base.epochs // 4)) if 0 < epoch < base.epochs}
    changes: dict[str, dict[str, Any]] = {model: {"run": {"model": model}} for model in MODELS} | {
        "mixup": {"data_augmentation": {"mixup_alpha": 0.2}},
        "no mixup": {"data_augmentation": {"mixup_alpha": 0.0}},
        "dropout": {"dropout_rate": 0.3},
        "no dropout": {"dropout_rate": 0.0},
        "cosine": {"lr_schedule": "cosine_annealing"},
        "step decay": {"lr_schedule": "step_decay", "lr_milestones": sorted(milestones)},
        "SGD": {"optimizer": "SGD"},
        "Adam": {"optimizer": "Adam", "nesterov": False, "learning_rate": 1e-3},  # SGD's rate is far too high for Adam
    }
    base = base.replace({"run": {"model": "resnet20"}})
    return {name: base.replace(change, where=name) for name, change in changes.items()}


def print_epoch(run: RunFolder, record: EpochRecord) -> None:
    print(f"{run.path}: epoch {record.epoch}", file=sys.stderr)


def measure(name: str, recipe: Recipe, *, seeds: int, source: DataSource, runs: Path) -> dict[str, Any]:
    """Train the unfinished seeds; return the figures of each seed in percent, their spread, and the mean curve."""
    seed_runs = begin_seeds(recipe, seeds=seeds, source=source, name=name.replace(" ", "-"), root=runs)
    for run in seed_runs.find_unfinished():
        train(run.read_recipe(), source=source, run=run, resume=True, on_epoch=partial(print_epoch, run))
    summary = seed_runs.write_summary()
    curves = [[100 * epoch["val_accuracy"] for epoch in run.read_metrics()] for run in seed_runs.runs]
    tests = evaluate_seeds(seed_runs, source=source).metrics
    rows = []
    for row, curve, test in zip(summary["seeds"], curves, tests, strict=True):
        shares = (test.accuracy, row["val_accuracy"], row["train_accuracy"], row["generalisation_gap"])
        rows.append(dict(zip(FIGURES, [*(100 * share for share in shares), curve[len(curve) // 2 - 1]], strict=True)))
    return {name: summary.get(name) for name in ("parameters", "device", "precision", "libraries")} | {
        "figures": {name: asdict(spread(row[name] for row in rows)) for name in FIGURES},
        "seeds": rows,
        "curve": [sum(values) / len(values) for values in zip(*curves, strict=True)],
    }


def judge(claim: Claim, results: dict[str, Any]) -> dict[str, Any]:
    """Compare a claim with its figures; decided if the 95% interval of the mean lies within or outside the range."""
    sides = {name: [row[claim.figure] for row in results[name]["seeds"]] for name in (claim.of, claim.minus) if name}
    values = [pair[0] - sum(pair[1:]) for pair in zip(*sides.values(), strict=True)]  # paired by seed
    found = spread(values)
    noise = None if found.std is None else T_95[min(found.n, 10) - 2] * found.std / math.sqrt(found.n)
    margin = min(found.mean - claim.low, claim.high - found.mean)
    verdict = "not decided"
    if noise is not None and abs(margin) > noise:
        verdict = "holds" if margin > 0 else "does not hold"
    claimed = {name: value for name, value in asdict(claim).items() if value != math.inf}  # JSON has no infinity
    means = {name: spread(numbers).mean for name, numbers in sides.items()}
    return claimed | {"verdict": verdict, "means": means, "value": asdict(found), "noise": noise}


def claim_lines(row: dict[str, Any]) -> str:
    sides = " against ".join(f"{mean:.2f} ({name})" for name, mean in row["means"].items())
    noise = "one seed, so no spread"
    if row["noise"] is not None:
        noise = f"std {row['value']['std']:.2f}, 95% within {row['noise']:.2f}, {row['value']['n']} seeds"
    difference = f", difference {row['value']['mean']:+.2f}" if row["minus"] else ""
    expected = f"claimed {row['low']:g} to {row['high']:g}" if "high" in row else f"claimed above {row['low']:g}"
    return f"{row['verdict']:<15}{row['text']}\n{'':<15}{row['figure']}: {sides}{difference}; {noise}; {expected}"


def table(results: dict[str, Any]) -> str:
    """Format the means in percent, each with its standard deviation over the seeds."""
    lines = [f"{'variant':<15}{'parameters':>11}" + "".join(f"{name:>15}" for name in FIGURES)]
    for name, result in results.items():
        cells = [(figure["mean"], figure["std"]) for figure in result["figures"].values()]
        texts = [f"{mean:.2f}" + ("" if std is None else f" ({std:.2f})") for mean, std in cells]
        lines.append(f"{name:<15}{result['parameters']:>11,}" + "".join(f"{text:>15}" for text in texts))
    return "\n".join(lines)


def draw(results: dict[str, Any], title: str, path: Path) -> None:
    """Draw validation accuracy by epoch, for the networks and for the changes, and the gap of each network."""
    figure = Figure(figsize=(16, 5.2), layout="constrained")
    networks, changes, gaps = figure.subplots(1, 3)
    models = [name for name in results if name in MODELS]
    late = [value for result in results.values() for value in result["curve"][len(result["curve"]) // 10 :]]
    lines: dict[tuple[bool, int], list[str]] = {}
    for name, result in results.items():
        lines.setdefault((name in MODELS, id(result)), []).append(name)  # names of one recipe share a line
    for (is_network, _), names in lines.items():
        curve = results[names[0]]["curve"]
        axes, marker = networks if is_network else changes, "." if len(curve) < 20 else ""
        axes.plot(range(1, len(curve) + 1), curve, label=", ".join(names), marker=marker)
    for axes, heading in ((networks, "networks"), (changes, "changes of the recipe")):
        axes.set(title=heading, xlabel="epoch", ylabel="validation accuracy, %, mean over seeds")
        axes.set_ylim(min(late) - 2, max(late) + 2)  # `late` omits the first epochs, far lower
    for name, marker in (("train", "^"), ("validation", "o"), ("test", "x")):
        points = [(place, row[name]) for place, model in enumerate(models) for row in results[model]["seeds"]]
        gaps.plot([place for place, _ in points], [value for _, value in points], marker, label=name, alpha=0.8)
    labels = [f"{model}\ngap {results[model]['figures']['gap']['mean']:.1f}" for model in models]
    gaps.set_xticks(range(len(models)), labels)
    gaps.set(title="each seed, last epoch (test: best epoch)", ylabel="accuracy, %", xlim=(-0.5, len(models) - 0.5))
    for axes in (networks, changes, gaps):
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(loc="best")
    figure.suptitle(title)
    save_figure(figure, path)


def compare(base: Recipe, *, seeds: int, source: DataSource, output: Path, only: list[str]) -> None:
    """Train, measure and compare; write the JSON file and the figure, print the table and the claims."""
    recipes = variants(base)
    if unknown := set(only) - recipes.keys():
        raise UsageError(f"unknown variant {', '.join(sorted(unknown))}; the variants are {', '.join(recipes)}")
    folders = {recipe: name for name, recipe in reversed(recipes.items())}  # the first name of each recipe
    known: dict[Recipe, dict[str, Any]] = {}
    for recipe in dict.fromkeys(recipes[name] for name in only or recipes):
        known[recipe] = measure(folders[recipe], recipe, seeds=seeds, source=source, runs=output / "runs")
    results = {name: known[recipe] for name, recipe in recipes.items() if name in (only or recipes)}
    claims = [judge(claim, results) for claim in CLAIMS if {claim.of, claim.minus or claim.of} <= results.keys()]
    found = {"data": source.name, "recipe": base.as_dict(), "variants": results, "claims": claims}
    (output / "claims.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draw(results, f"{source.name}, {base.epochs} epochs, seeds 0 to {seeds - 1}", output / "claims.png")
    print(table(results), *map(claim_lines, claims), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="reference", help="a preset, or a TOML or JSON file")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, help="replaces the recipe's")
    parser.add_argument("--data", help="folder with CIFAR-10, or demo")
    parser.add_argument("--output", type=Path, default=Path("claims"), help="folder for the runs and the results")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a variant to train")
    options = parser.parse_args()
    try:
        changes = {"early_stopping": False} | ({"epochs": options.epochs} if options.epochs is not None else {})
        base = load_recipe(options.recipe).replace(changes)
        if base.run.val_size == 0:
            raise UsageError("the claims are about validation accuracy, so the recipe's val_size cannot be 0")
        source = find_data(options.data)
        compare(base, seeds=options.seeds, source=source, output=options.output, only=options.only)
    except ToolkitError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
