"""Compare the time to 91% test accuracy of `fast` with that of the same preset before Muon (`fast-sgd.toml`).

    python -m results.time_to_91 [--rounds 2] [--output FILE]

It needs CIFAR-10 and an idle machine. In each round, one process per side trains for two epochs: the first on 24x24
crops, the second on 32x32. The time of a whole run, from process start to the end, is extrapolated: the medians of the
epoch times, each multiplied by the recipe's number of such epochs, plus the median of the time that the process spends
outside its epochs, which includes measuring the accuracy on the training images at the end. Both presets reach 91%:
`fast` in three seeds, the one before Muon in the one that was trained (presets.json).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from toolkit.device import device_name
from toolkit.recipes.recipe import load_recipe
from toolkit.recipes.schedule import choose_crop_size

ROOT = Path(__file__).parents[1]
SIDES = {"SGD": "results/fast-sgd.toml", "Muon": "fast"}  # optimizer: recipe
TWO_EPOCHS = ("--epochs", "2", "--small-crop-share", "0.5", "--warmup-epochs", "0", "--val-size", "0")


def time_two_epochs(recipe: str) -> dict[str, float]:
    """Return the seconds of an epoch on 24x24 crops, of one on 32x32, and of the rest of the process."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "cli.py", "train", "--recipe", recipe, *TWO_EPOCHS, "--runs", folder, "--name", "two"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.perf_counter() - start
        lines = (Path(folder) / "two" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    small, full = (json.loads(line)["seconds"] for line in lines)
    return {"epoch_24": small, "epoch_32": full, "outside_epochs": seconds - small - full}


def extrapolate(recipe: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Return the epochs of each kind and the seconds of a whole run of the recipe."""
    whole = load_recipe(recipe)
    small = sum(choose_crop_size(whole, epoch) < 32 for epoch in range(1, whole.epochs + 1))
    median = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    full = whole.epochs - small
    seconds = small * median["epoch_24"] + full * median["epoch_32"] + median["outside_epochs"]
    return {"recipe": recipe, "epochs_24": small, "epochs_32": full, "rounds": rounds, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for number in range(options.rounds):
        for name, recipe in SIDES.items():
            rounds[name].append(time_two_epochs(recipe))
            print(f"round {number + 1}: {name}: {rounds[name][-1]}", file=sys.stderr, flush=True)
    sides = {name: extrapolate(recipe, rounds[name]) for name, recipe in SIDES.items()}
    figures = {
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "load_at_end": os.getloadavg()[0],
        "sides": sides,
        "ratio": sides["SGD"]["seconds"] / sides["Muon"]["seconds"],
    }
    print(json.dumps(figures, indent=2))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
