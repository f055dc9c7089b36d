"""Kill a training run at random moments; check that its files load and that the resumed run is exact.

    python -m results.kill_training [--kills 50] [--seed 0]

Takes minutes. After the last kill, the weights of the run are compared with those of an uninterrupted run.
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

from tests.support.sources import colored_source
from tests.support.training import train_epochs
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import RunFolder, create_run, open_run
from toolkit.training.trainer import train

MAX_SECONDS = 2.0  # from the first step to the signal


def recipe_for(epochs: int) -> Recipe:
    return Recipe.from_dict(
        {"epochs": epochs, "batch_size": 50, "run": {"val_size": 20, "precision": "float32"}}, where="kill_training"
    )


def resume_run(run: RunFolder) -> None:
    """Resume the run in the process that will be killed; print "started" at the first step."""
    started = False

    def progress(done: int, images: int) -> None:
        nonlocal started
        if not started:
            print("started", flush=True)
            started = True

    train(run.read_recipe(), source=colored_source(), run=run, device="cpu", resume=True, on_progress=progress)


def kill_once(run: RunFolder, seconds: float) -> bool:
    """Resume the run in a process and kill it `seconds` after its first step; False if it ended before."""
    command = [sys.executable, "-m", "results.kill_training", "--child", str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.returncode == -signal.SIGKILL


def check_files(run: RunFolder, epoch_before: int) -> int:
    """Load the checkpoints and check that no completed epoch is lost; return the last completed epoch."""
    last = load_checkpoint(run.last)
    assert last.training is not None
    assert last.epoch >= epoch_before, f"went back from epoch {epoch_before} to {last.epoch}"
    if run.best.exists():
        load_checkpoint(run.best).network()
    epochs = [record["epoch"] for record in run.read_metrics()]
    assert set(range(1, last.epoch + 1)) <= set(epochs), "a line of metrics.jsonl is missing"
    return last.epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        resume_run(open_run(options.child))
        return
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        recipe = recipe_for(epochs=20 * options.kills)
        run = create_run(recipe, stem="killed", root=root)
        train_epochs(run, colored_source(), 1)
        kills = epoch = 0
        while kills < options.kills and kill_once(run, generator.uniform(0, MAX_SECONDS)):
            kills += 1
            epoch = check_files(run, epoch)
            leftovers = len(list(run.path.glob(".*.partial")))
            print(f"kill {kills}: epoch {epoch}, files load; {leftovers} temporary files left", flush=True)
        uninterrupted = create_run(recipe, stem="uninterrupted", root=root)
        train_epochs(uninterrupted, colored_source(), epoch)
        expected = load_checkpoint(uninterrupted.last).weights
        assert all(torch.equal(value, expected[name]) for name, value in load_checkpoint(run.last).weights.items())
        print(f"{kills} kills; after epoch {epoch} the weights are bit-identical to those of an uninterrupted run")


if __name__ == "__main__":
    main()
