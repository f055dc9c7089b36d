"""ONNX Runtime by itself for `cifar bench predict`, in a process of its own: a bare session, fed with ready batches."""

import sys
import time
from typing import Any

import numpy as np
import onnxruntime

from toolkit.bench.harness import Answer, run_worker


def serve(spec: dict[str, Any], answer: Answer) -> None:
    """Open the model with the defaults of ONNX Runtime; each line of stdin is a round over all the pictures."""
    session = onnxruntime.InferenceSession(spec["model"], providers=["CPUExecutionProvider"])
    batches = _batches(spec["pictures"], spec["batch_size"])
    for batch in batches[:3]:
        session.run(None, {"images": batch})
    answer({})
    for _ in sys.stdin:
        start = time.perf_counter()
        for batch in batches:
            session.run(None, {"images": batch})
        answer({"seconds": time.perf_counter() - start})
    answer({})


def _batches(pictures: int, batch_size: int) -> list[Any]:
    """Random pictures, uint8 (batch_size, 32, 32, 3) each, and in the last what is left."""
    images = np.random.default_rng(0).integers(0, 256, (pictures, 32, 32, 3), dtype=np.uint8)
    return [images[start : start + batch_size] for start in range(0, pictures, batch_size)]


if __name__ == "__main__":
    run_worker(serve)
