"""How each way of calibrating int8 does on the validation images: a table, and JSON.

    python results/choose_calibration.py runs/NAME/best.pt [--data DATA] [--images 128 512] [--draws 5] [--json FILE]

The checkpoint must come from a run that held validation images out. Ranges are taken from the images that it was
trained on, and each result is judged on those held out; the test set is never read. What is compared with is the same
network in float32, by PyTorch. Each way is tried with several draws of calibration images, for the differences between
the ways are no larger than those between draws.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from toolkit.data.dataset import DataSource, data_identity, find_data, require_same_data
from toolkit.data.images import Images
from toolkit.data.split import split_images
from toolkit.deploy.export import build_graph
from toolkit.deploy.quantize import CALIBRATION_METHODS, calibration_images, to_int8
from toolkit.errors import ToolkitError
from toolkit.evaluation.metrics import compute_logits
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint

COUNTS = (128, 512)  # more would not fit: for histograms, ONNX Runtime keeps every activation, 3 MB an image
DRAWS = 5
BATCH = 500


@dataclass(frozen=True)
class Result:
    """One way of calibrating, or float32 (`method` "none").

    Attributes:
        method: how the range of an activation follows from the images.
        reduce_range: weights of 7 bits.
        images: how many training images it saw.
        draw: which ones: the seed that chose them.
        correct: of the `validation_images`.
        mean_logit_difference, largest_logit_difference: from float32, over all logits of the validation images.
        labels_changed: validation images whose label is another than in float32.
        bytes: size of the model, without metadata.
    """

    method: str
    reduce_range: bool
    images: int
    draw: int
    correct: int
    validation_images: int
    mean_logit_difference: float
    largest_logit_difference: float
    labels_changed: int
    bytes: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.validation_images


def compare(
    checkpoint: Checkpoint, source: DataSource, *, counts: Sequence[int] = COUNTS, draws: int = DRAWS
) -> Iterator[Result]:
    """Float32 first, then every way, as each is done. Raises ToolkitError where no validation images were held out."""
    train, validation = held_out(checkpoint, source)
    network = checkpoint.network()
    graph = build_graph(network)
    expected = compute_logits(network, validation.images).numpy()
    labels = validation.labels.numpy()
    exact = {"method": "none", "reduce_range": False, "images": 0, "draw": 0, "bytes": graph.ByteSize()}
    yield _result(expected, expected, labels, **exact)
    for method, count, reduce_range, draw in product(CALIBRATION_METHODS, counts, (True, False), range(draws)):
        images = calibration_images(train, count=count, seed=draw)
        model, _ = to_int8(graph, images, method=method, reduce_range=reduce_range)
        content = model.SerializeToString()
        how = {"method": method, "reduce_range": reduce_range, "images": len(images), "draw": draw}
        yield _result(logits_of(content, validation), expected, labels, **how, bytes=len(content))


def held_out(checkpoint: Checkpoint, source: DataSource) -> tuple[Images, Images]:
    """The images that the network was trained on, and those that it has not seen."""
    images = source.train()
    require_same_data(checkpoint.data, data_identity(source.name, images), what="the checkpoint")
    size = checkpoint.recipe.get("run", {}).get("val_size", 0)
    if not size:
        raise ToolkitError("the checkpoint was trained on all images: take one of a run with run.val_size above 0")
    return split_images(images, size)


def logits_of(model: bytes, images: Images) -> np.ndarray:
    """What ONNX Runtime computes on the CPU, float32 (N, 10)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batches = images.images.permute(0, 2, 3, 1).contiguous().split(BATCH)  # (B, 32, 32, 3) each
    return np.concatenate([session.run(["logits"], {"images": batch.numpy()})[0] for batch in batches])


def _result(logits: np.ndarray, expected: np.ndarray, labels: np.ndarray, **how: Any) -> Result:
    differences, answers = np.abs(logits - expected), logits.argmax(1)
    return Result(
        correct=int((answers == labels).sum()),
        validation_images=len(labels),
        mean_logit_difference=float(differences.mean()),
        largest_logit_difference=float(differences.max()),
        labels_changed=int((answers != expected.argmax(1)).sum()),
        **how,
    )


def line(result: Result) -> str:
    bits = "" if result.method == "none" else "7 bits" if result.reduce_range else "8 bits"
    return (
        f"{result.method:<12}{bits:<8}{result.images:>7,}{result.draw:>5}{result.accuracy:>10.2%}{result.mean_logit_difference:>12.4f}"
        f"{result.largest_logit_difference:>12.4f}{result.labels_changed:>9,}"
    )


HEADER = (
    f"{'method':<12}{'weights':<8}{'images':>7}{'draw':>5}{'accuracy':>10}"
    f"{'mean diff.':>12}{'largest':>12}{'changed':>9}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        checkpoint = load_checkpoint(given.checkpoint)
        print(HEADER)
        results = []
        for result in compare(checkpoint, find_data(given.data), counts=given.images, draws=given.draws):
            results.append(result)
            print(line(result), flush=True)
    except ToolkitError as error:
        sys.exit(f"error: {error}")
    if given.json:
        summary = {
            "model": checkpoint.model,
            "epoch": checkpoint.epoch,
            "data": checkpoint.data,
            "libraries": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            "results": [dataclasses.asdict(result) | {"accuracy": result.accuracy} for result in results],
        }
        given.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
