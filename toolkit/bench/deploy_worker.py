"""The worker of `cifar bench deploy`: opens a model with ONNX Runtime or PyTorch and times calls of it.

The images are random: their content does not affect the speed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench.worker import Workload, read_peak_memory, read_resident_memory, run_worker

WARM_UP_CALLS = 2  # untimed, at each new batch size: compilation and the first allocations
MIN_CALLS = 3  # per round, however slow

Call = Callable[[np.ndarray[Any, Any]], Any]  # uint8 (N, 32, 32, 3) -> logits and probabilities


def prepare(options: dict[str, Any]) -> Workload:
    """Open the model `options["file"]`."""
    open_model = OPENERS[options["kind"]](options)  # imports the library; the model is not open yet
    before = read_resident_memory()
    begin = time.perf_counter()
    call = open_model()
    start_seconds = time.perf_counter() - begin
    warm_sizes: set[int] = set()

    def run_round(batch_size: int, seconds: float) -> dict[str, Any]:
        images = np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), dtype=np.uint8)
        for _ in range(1 if batch_size in warm_sizes else WARM_UP_CALLS):
            call(images)
        warm_sizes.add(batch_size)
        milliseconds = time_calls(call, images, seconds)
        speed = 1e3 * batch_size * len(milliseconds) / sum(milliseconds)
        return {"images_per_second": speed, "milliseconds": milliseconds}

    def memory() -> int | None:
        peak = read_peak_memory()
        return None if peak is None or before is None else peak - before

    return Workload(run_round, memory, start_seconds=start_seconds)


def time_calls(call: Call, images: np.ndarray[Any, Any], seconds: float) -> list[float]:
    """Call the model for `seconds`; return the duration of each call in milliseconds."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call(images)
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def import_onnx(options: dict[str, Any]) -> Callable[[], Call]:
    """The session of `cifar predict` and the Python interface."""
    from toolkit.inference.session import open_model

    return lambda: open_model(options["file"], provider=options["place"]).logits_and_probabilities


def import_bare(options: dict[str, Any]) -> Callable[[], Call]:
    """A session of ONNX Runtime with its own defaults."""
    import onnxruntime

    def start() -> Call:
        session = onnxruntime.InferenceSession(options["file"], providers=["CPUExecutionProvider"])
        return lambda images: session.run(["logits", "probabilities"], {"images": images})

    return start


def import_torch(options: dict[str, Any]) -> Callable[[], Call]:
    """The checkpoint's network with the preprocessing and the outputs of an exported file."""
    import torch

    from toolkit.deploy.export import DeployedNetwork
    from toolkit.device import limit_threads
    from toolkit.runs.checkpoint import load_checkpoint

    limit_threads()
    device = torch.device(options["place"])

    def start() -> Call:
        checkpoint = load_checkpoint(Path(options["file"]))
        network = DeployedNetwork(checkpoint.network(), statistics=checkpoint.statistics, input_format="uint8-nhwc")
        network.eval().to(device)
        network.to(memory_format=torch.channels_last)
        forward = torch.compile(network, dynamic=False) if options["kind"] == "compiled" else network

        def call(images: np.ndarray[Any, Any]) -> Any:
            with torch.inference_mode():
                return [output.cpu().numpy() for output in forward(torch.from_numpy(images).to(device))]

        return call

    return start


OPENERS = {"onnx": import_onnx, "bare": import_bare, "eager": import_torch, "compiled": import_torch}


if __name__ == "__main__":
    run_worker(prepare)
