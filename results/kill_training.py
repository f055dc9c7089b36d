"""Kill a training run at random moments, again and again: what is on disk must load, and the run must go on exactly.

    python -m results.kill_training [--kills 50] [--seed 0]

Takes minutes, so it is no part of the suite. At the end the run, killed and resumed so many times, is finished and
compared, weight by weight, with one that was never touched.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.support.sources import coloured_source
from tests.support.training import train_epochs
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import RunFolder, create_run, open_run
from toolkit.training.trainer import train

LONGEST_LIFE = 2.0  # seconds from the first step to the signal


def recipe_for(epochs: int) -> Recipe:
    return Recipe.from_dict(
        {"epochs": epochs, "batch_size": 50, "run": {"val_size": 20, "precision": "float32"}}, where="kill_training"
    )


def go_on(run: RunFolder) -> None:
    """What the killed process does: resume, and say when it has begun."""
    started = False

    def progress(done: int, images: int) -> None:
        nonlocal started
        if not started:
            print("started", flush=True)
            started = True

    train(run.recipe(), source=coloured_source(), run=run, device="cpu", resume=True, on_progress=progress)


def kill_once(run: RunFolder, life: float) -> bool:
    """Resume in a process of its own and kill it after `life` seconds; False where it was quicker than that."""
    command = [sys.executable, "-m", "results.kill_training", "--child", str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(life)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.returncode == -signal.SIGKILL


def check(run: RunFolder, epoch_before: int) -> int:
    """What is on disk loads, and nothing that was finished is lost. Returns the epoch that was reached."""
    last = load_checkpoint(run.last)
    assert last.training is not None
    assert last.epoch >= epoch_before, f"went back from epoch {epoch_before} to {last.epoch}"
    if run.best.exists():
        load_checkpoint(run.best).network()
    epochs = [record["epoch"] for record in run.read_metrics()]
    assert set(range(1, last.epoch + 1)) <= set(epochs), "an epoch's line is missing"
    return last.epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        go_on(open_run(options.child))
        return
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        recipe = recipe_for(epochs=20 * options.kills)
        run = create_run(recipe, stem="killed", root=root)
        train_epochs(run, coloured_source(), 1)
        kills = epoch = 0
        while kills < options.kills and kill_once(run, moments.uniform(0, LONGEST_LIFE)):
            kills += 1
            epoch = check(run, epoch)
            leftovers = len(list(run.path.glob(".*.partial")))
            print(f"kill {kills}: epoch {epoch}, all loads; {leftovers} temporary files left", flush=True)
        short = root / "short"
        whole = create_run(recipe, stem="whole", root=short)
        train_epochs(whole, coloured_source(), epoch)
        same = load_checkpoint(whole.last).weights
        assert all(torch.equal(value, same[name]) for name, value in load_checkpoint(run.last).weights.items())
        print(f"{kills} kills; after epoch {epoch} the weights are those of a run that was never killed")


if __name__ == "__main__":
    main()
