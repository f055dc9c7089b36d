"""The commands of `cifar demo`: the whole pipeline on synthetic pictures."""

import shlex
from collections.abc import Callable
from pathlib import Path

NEXT_COMMANDS = "  cifar train --recipe fast --val-size 0\n  cifar export model.onnx\n  cifar predict cat.png"


def run_demo(folder: Path, *, run: Callable[[list[str]], int | None], echo: Callable[[str], object]) -> int:
    """Run the commands one after the other, up to the first that fails; return the last exit code.

    Args:
        folder: for all files of the demo; a numbered one beside it if it exists.
        run: runs one command with the given arguments and returns its exit code.
        echo: prints each command line, and at the end the commands for CIFAR-10.
    """
    place = demo_folder(folder)
    for arguments in demo_commands(place):
        echo(f"\n$ cifar {shlex.join(arguments)}")
        if exit_code := run(arguments):
            return exit_code
    echo(
        f"\nThat was the whole pipeline, on synthetic pictures; all files are in {place}. On CIFAR-10:\n{NEXT_COMMANDS}"
    )
    return 0


def demo_folder(folder: Path) -> Path:
    """Return `folder`, or a numbered folder beside it if it exists; reuse the folder of an interrupted demo."""
    candidates = [folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 10_000))]
    return next(path for path in candidates if not path.exists() or _is_interrupted(path))


def _is_interrupted(folder: Path) -> bool:
    return (folder / "runs" / "demo").is_dir() and not (folder / "samples").exists()


def demo_commands(folder: Path) -> list[list[str]]:
    """Return the arguments of each `cifar` command, in order; resume training, or skip it if it has finished."""
    run, model, samples = folder / "runs" / "demo", folder / "model.onnx", folder / "samples"
    train = ["train", "--recipe", "demo", "--data", "demo", "--runs", run.parent, "--name", run.name]
    if (run / "recipe.toml").is_file():
        train = ["train", "--resume", run, "--data", "demo"]
    commands = [
        ["export", model, "--data", "demo", "--runs", run.parent],
        ["verify", model, "--data", "demo", "--checkpoint", run / "best.pt"],
        ["data", "--data", "demo", "--samples", samples],
        ["predict", samples, "--model", model, "--top", "3"],
    ]
    if not (run / "summary.json").is_file():
        commands.insert(0, train)
    return [[str(word) for word in command] for command in commands]
