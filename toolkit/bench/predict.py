"""`cifar bench predict`: `cifar predict` compared with a bare script and with ONNX Runtime alone, on the CPU.

One picture: the whole process, imports included, of `cifar predict` and of `bare_script.py`. A folder: both again,
and a bare session of ONNX Runtime that is fed with arrays.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from toolkit.bench.harness import ANSWER_LIMIT, measure
from toolkit.bench.result import BenchmarkResult, Result, Side
from toolkit.cores import available_cores
from toolkit.device import device_name
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference.model_file import find_model
from toolkit.inference.pipeline import BATCH_SIZE
from toolkit.inference.session import open_model
from toolkit.reporting import Note, ignore

PICTURES, QUICK_PICTURES = 10_000, 500
SINGLE_ROUNDS, FOLDER_ROUNDS = 15, 3
QUICK_ROUNDS = 3, 1
RUNTIME_SECONDS, QUICK_RUNTIME_SECONDS = 3.0, 0.1  # of each round of ONNX Runtime alone

BARE = str(Path(__file__).with_name("bare_script.py"))
# -P: the folder of bare_script.py is not searched for modules.
_BARE = [sys.executable, "-P", BARE]
_CIFAR = [sys.executable, "-P", "-m", "cli", "predict", "--provider", "cpu", "--model"]


def bench_predict(
    model: str | os.PathLike[str] | None = None,
    *,
    pictures: int | None = None,
    quick: bool = False,
    progress: Note = ignore,
) -> BenchmarkResult:
    """Time prediction of one picture and of a folder.

    `memory` of a program is its largest resident memory. Ratios refer to the bare script for one picture, and to ONNX
    Runtime alone for the folder. `figures`: `speedup` of `cifar predict` over the bare script for the folder, and
    `ratio_after_start`, its ratio to ONNX Runtime without the time that it takes for one picture.

    Args:
        model: an ONNX file that takes uint8 pictures; by default the one that `cifar predict` takes.
        pictures: number of PNG files of 32x32 pixels in the folder; by default 10,000, and 500 when `quick`.
        quick: few rounds.
        progress: called with a description of the next measurement.

    Raises:
        UsageError: fewer than one picture.
        ToolkitError: there is no such model, or a program failed.
    """
    start = time.monotonic()
    pictures = (QUICK_PICTURES if quick else PICTURES) if pictures is None else pictures
    if pictures < 1:
        raise UsageError(f"the folder needs at least 1 picture, not {pictures}")
    path = find_model(model).resolve()
    input_format = open_model(path, provider="cpu").input_format
    if input_format != "uint8-nhwc":
        raise ToolkitError(
            f"{path} has the input format {input_format}; the comparison needs a model exported with uint8-nhwc"
        )
    single_rounds, folder_rounds = QUICK_ROUNDS if quick else (SINGLE_ROUNDS, FOLDER_ROUNDS)
    with tempfile.TemporaryDirectory(prefix="cifar-bench-") as folder:
        progress(f"drawing {pictures:,} pictures")
        draw_pictures(Path(folder), pictures)
        one = os.path.join(folder, "00000.png")
        single_sides = [
            _program("one picture, bare script", [*_BARE, str(path), one], warm_up=True),
            _program("one picture, cifar predict", [*_CIFAR, str(path), one], warm_up=True),
        ]
        single = require_timings(measure(single_sides, [1], rounds=single_rounds, seconds=0, progress=progress))
        folder_sides = [
            _runtime(path),
            _program("folder, bare script", [*_BARE, str(path), folder], pictures=pictures),
            _program("folder, cifar predict", [*_CIFAR, str(path), folder], pictures=pictures),
        ]
        whole = require_timings(
            measure(
                folder_sides,
                [BATCH_SIZE],
                rounds=folder_rounds,
                seconds=QUICK_RUNTIME_SECONDS if quick else RUNTIME_SECONDS,
                answer_limit=ANSWER_LIMIT + 0.1 * pictures,
                progress=progress,
            )
        )
    whole[0] = replace(whole[0], memory=None)  # not comparable: excludes the memory from before the model was opened
    return BenchmarkResult(
        benchmark="predict",
        device=device_name(torch.device("cpu")),
        cores=available_cores(),
        libraries={"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "pillow": version("pillow")},
        settings={"model": path.name, "pictures": pictures, "quick": quick},
        seconds=time.monotonic() - start,
        results=(*(record_size(result, 1) for result in single), *(record_size(result, pictures) for result in whole)),
        figures=derive_figures(single, whole, pictures),
    )


def record_size(result: Result, pictures: int) -> Result:
    """Replace the side's options by the number of pictures: the other options hold local paths."""
    return replace(result, side=replace(result.side, options={"pictures": pictures}))


def require_timings(results: list[Result]) -> list[Result]:
    """The results. Raises ToolkitError if a side failed."""
    if failed := next((result for result in results if not result.timings), None):
        raise ToolkitError(f"{failed.side.name}: {failed.note}")
    return results


def derive_figures(single: Sequence[Result], whole: Sequence[Result], pictures: int) -> dict[str, float]:
    """`speedup` and `ratio_after_start` (see `bench_predict`)."""
    start = 1 / single[1].timings[0].images_per_second
    runtime, bare, ours = (result.timings[0].images_per_second for result in whole)
    seconds_after_start = max(pictures / ours - start, 1e-9)
    return {"speedup": ours / bare, "ratio_after_start": pictures / runtime / seconds_after_start}


def _program(name: str, command: list[str], *, pictures: int = 1, warm_up: bool = False) -> Side:
    options = {"command": command, "pictures": pictures, "warm_up": warm_up}
    return Side(name, "toolkit.bench.program_worker", options)


def _runtime(model: Path) -> Side:
    options = {"kind": "bare", "file": str(model), "place": "cpu"}
    return Side("folder, ONNX Runtime alone", "toolkit.bench.deploy_worker", options)


def draw_pictures(folder: Path, count: int) -> None:
    """Write `count` PNG files of 32x32 pixels, 00000.png and so on: sixteen squares with noise, about 2.5 kB each."""
    generator = np.random.default_rng(0)
    for number in range(count):
        squares = generator.integers(0, 256, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)  # (32, 32, 3)
        noisy = squares + generator.integers(-20, 21, squares.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.png")
