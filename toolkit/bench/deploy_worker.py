"""One side of `cifar bench deploy`, in a process of its own: it takes its orders on stdin, one a line, as JSON.

It answers once the model is open, then for each batch size and number of seconds with how long each call took, and at
the end with the memory that it took. The images are random: what they show does not change how fast they are.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench.harness import Answer, peak_memory, resident_memory, run_worker

WARM_UP_CALLS = 2  # untimed, each time the batch size changes: a compiler's work and the first allocations
LEAST_CALLS = 3  # of a round, however slow

Call = Callable[[np.ndarray[Any, Any]], Any]  # uint8 (N, 32, 32, 3) -> logits and probabilities


def serve(spec: dict[str, Any], answer: Answer) -> None:
    """Open the side's model and time calls of it."""
    prepare = {"onnx": _onnx, "bare": _bare, "eager": _torch, "compiled": _torch}[spec["kind"]]
    start_side = prepare(spec)  # imports; the model is not open yet
    before = resident_memory()
    begun = time.perf_counter()
    call = start_side()
    answer({"start_ms": 1e3 * (time.perf_counter() - begun)})
    last = 0
    for line in sys.stdin:
        order = json.loads(line)
        images = np.random.default_rng(0).integers(0, 256, (order["batch_size"], 32, 32, 3), dtype=np.uint8)
        for _ in range(WARM_UP_CALLS if order["batch_size"] != last else 1):
            call(images)
        last = order["batch_size"]
        answer({"milliseconds": _timed(call, images, order["seconds"])})
    peak = peak_memory()
    answer({"memory": None if peak is None or before is None else peak - before})


def _timed(call: Call, images: np.ndarray[Any, Any], seconds: float) -> list[float]:
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call(images)
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def _onnx(spec: dict[str, Any]) -> Callable[[], Call]:
    """The session that `cifar predict` and the library use."""
    from toolkit.inference.session import open_model

    return lambda: open_model(spec["file"], provider=spec["place"]).logits_and_probabilities


def _bare(spec: dict[str, Any]) -> Callable[[], Call]:
    """ONNX Runtime with its own defaults, and nothing around it."""
    import onnxruntime

    def start() -> Call:
        session = onnxruntime.InferenceSession(spec["file"], providers=["CPUExecutionProvider"])
        return lambda images: session.run(["logits", "probabilities"], {"images": images})

    return start


def _torch(spec: dict[str, Any]) -> Callable[[], Call]:
    """The checkpoint's network with the preprocessing and the outputs of the exported file."""
    import torch

    from toolkit.deploy.export import Deployed
    from toolkit.device import use_available_cores
    from toolkit.runs.checkpoint import load_checkpoint

    use_available_cores()
    device = torch.device(spec["place"])

    def start() -> Call:
        network = Deployed(load_checkpoint(Path(spec["file"])).network(), input="uint8-nhwc").eval().to(device)
        network.to(memory_format=torch.channels_last)
        forward = torch.compile(network, dynamic=False) if spec["kind"] == "compiled" else network

        def call(images: np.ndarray[Any, Any]) -> Any:
            with torch.inference_mode():
                return [output.cpu().numpy() for output in forward(torch.from_numpy(images).to(device))]

        return call

    return start


if __name__ == "__main__":
    run_worker(serve)
