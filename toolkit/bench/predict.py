"""`cifar bench predict`: prediction beside the bare libraries, on the machine at hand and on the CPU.

One picture: the whole process of `cifar predict` beside that of `bare_script.py`, imports included. A folder: `cifar
predict` beside `bare_script.py`, which takes one picture at a time, and beside ONNX Runtime by itself, fed with ready
batches. The sides run in turn, round after round, each in a process of its own with its own defaults; medians count.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from toolkit.bench.harness import Finished, Worker, time_program
from toolkit.cores import available_cores
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference.model_file import find_model
from toolkit.inference.pipeline import BATCH_SIZE
from toolkit.inference.session import open_model

PICTURES = 10_000
QUICK_PICTURES = 500
SINGLE_ROUNDS, FOLDER_ROUNDS = 15, 3
QUICK_ROUNDS = 3, 1

Progress = Callable[[str], None]

BARE = str(Path(__file__).with_name("bare_script.py"))
# -P: the folder of bare_script.py, with names such as `format`, is not searched for modules.
_BARE = [sys.executable, "-P", BARE]
_CIFAR = [sys.executable, "-P", "-m", "cli", "predict", "--provider", "cpu", "--model"]


@dataclass(frozen=True)
class Program:
    """A whole program over all its rounds.

    Attributes:
        seconds: the median, from starting the process to its end.
        rounds: seconds in each round.
        peak_memory: bytes, the largest of the rounds; None where the system does not tell.
    """

    seconds: float
    rounds: tuple[float, ...]
    peak_memory: int | None


@dataclass(frozen=True)
class PredictionBenchmark:
    """What came of it, and what it was measured on.

    Attributes:
        single, single_bare: one picture, by `cifar predict` and by `bare_script.py`.
        single_ratio: of those two times.
        folder, folder_bare: `pictures` pictures, likewise.
        runtime_seconds: ONNX Runtime by itself over as many pictures; `runtime_rounds` are those of each round.
        pictures_per_second, bare_pictures_per_second, runtime_pictures_per_second: of whole programs, but ONNX Runtime.
        speedup: `cifar predict` over the folder to one picture at a time.
        share: of ONNX Runtime's own pictures a second, what the whole program `cifar predict` reaches.
        share_after_start: the same without the time that it takes for one picture, which is its start.
    """

    model: str
    cores: int
    libraries: dict[str, str]
    quick: bool
    pictures: int
    batch_size: int
    single: Program
    single_bare: Program
    single_ratio: float
    folder: Program
    folder_bare: Program
    runtime_seconds: float
    runtime_rounds: tuple[float, ...]
    pictures_per_second: float
    bare_pictures_per_second: float
    runtime_pictures_per_second: float
    speedup: float
    share: float
    share_after_start: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def bench_predict(
    model: str | os.PathLike[str] | None = None,
    *,
    pictures: int | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> PredictionBenchmark:
    """Time prediction.

    Args:
        model: an ONNX file that takes uint8 pictures; by default the one that `cifar predict` takes.
        pictures: how many PNG files of 32 x 32 the folder has; by default 10,000, and 500 when `quick`.
        quick: few rounds.
        progress: told what is being measured.

    Raises:
        UsageError: fewer than one picture.
        ToolkitError: there is no such model, or a program failed.
    """
    tell = progress or (lambda text: None)
    pictures = (QUICK_PICTURES if quick else PICTURES) if pictures is None else pictures
    if pictures < 1:
        raise UsageError(f"the folder needs at least 1 picture, not {pictures}")
    path = find_model(model).resolve()
    if open_model(path, provider="cpu").input_form != "uint8-nhwc":
        raise ToolkitError(f"{path}: takes float pictures; the comparison needs a model exported with uint8-nhwc")
    start = time.monotonic()
    single_rounds, folder_rounds = QUICK_ROUNDS if quick else (SINGLE_ROUNDS, FOLDER_ROUNDS)
    with tempfile.TemporaryDirectory(prefix="cifar-bench-") as folder:
        tell(f"drawing {pictures:,} pictures")
        draw_pictures(Path(folder), pictures)
        one = os.path.join(folder, "00000.png")
        tell("one picture")
        commands = [[*_CIFAR, str(path), one], [*_BARE, str(path), one]]
        _each(commands)  # untimed: the first to run reads its libraries from the disk
        single, single_bare = map(_program, zip(*(_each(commands) for _ in range(single_rounds)), strict=True))
        commands = [[*_CIFAR, str(path), folder], [*_BARE, str(path), folder]]
        ready = _Ready(str(path), pictures)
        try:
            runs = []
            for number in range(folder_rounds):
                tell(f"the folder: round {number + 1}")
                ready.round()
                runs.append(_each(commands))
        finally:
            ready.stop()
        whole, whole_bare = map(_program, zip(*runs, strict=True))
    runtime = statistics.median(ready.rounds)
    after_start = max(whole.seconds - single.seconds, 1e-9)
    return PredictionBenchmark(
        model=path.name,
        cores=available_cores(),
        libraries={"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "pillow": version("pillow")},
        quick=quick,
        pictures=pictures,
        batch_size=BATCH_SIZE,
        single=single,
        single_bare=single_bare,
        single_ratio=single.seconds / single_bare.seconds,
        folder=whole,
        folder_bare=whole_bare,
        runtime_seconds=runtime,
        runtime_rounds=tuple(ready.rounds),
        pictures_per_second=pictures / whole.seconds,
        bare_pictures_per_second=pictures / whole_bare.seconds,
        runtime_pictures_per_second=pictures / runtime,
        speedup=whole_bare.seconds / whole.seconds,
        share=runtime / whole.seconds,
        share_after_start=runtime / after_start,
        seconds=time.monotonic() - start,
    )


def draw_pictures(folder: Path, count: int) -> None:
    """`count` PNG files of 32 x 32 pixels, 00000.png and so on: sixteen squares with noise, about 2.5 kB each."""
    generator = np.random.default_rng(0)
    for number in range(count):
        squares = generator.integers(0, 256, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)  # (32, 32, 3)
        noisy = squares + generator.integers(-20, 21, squares.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.png")


class _Ready:
    """ONNX Runtime by itself, in its process."""

    def __init__(self, model: str, pictures: int) -> None:
        self.rounds: list[float] = []
        spec = {"model": model, "pictures": pictures, "batch_size": BATCH_SIZE}
        self.worker = Worker("toolkit.bench.predict_worker", spec)

    def round(self) -> None:
        seconds = self.worker.ask("once more").get("seconds")
        if seconds is None:
            raise ToolkitError(f"ONNX Runtime by itself failed: {self.worker.failure}")
        self.rounds.append(seconds)

    def stop(self) -> None:
        self.worker.stop()


def _each(commands: list[list[str]]) -> list[Finished]:
    return [time_program(command) for command in commands]


def _program(runs: Sequence[Finished]) -> Program:
    seconds = tuple(run.seconds for run in runs)
    memory = [run.peak_memory for run in runs if run.peak_memory is not None]
    return Program(statistics.median(seconds), seconds, max(memory, default=None))
