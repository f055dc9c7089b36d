"""Compare the ways of calibrating int8 on the validation images of a run: prints a table, and writes JSON.

    python -m results.choose_calibration runs/NAME/best.pt [--data DATA] [--images 128 512] [--draws 5] [--json FILE]

The checkpoint must come from a run that held out validation images. Ranges are taken from its training images, and each
model is evaluated on its validation images; the test set is never read. The reference is the same network in float32,
by PyTorch. Each way is tried with several draws of calibration images, because the draws differ as much as the ways.
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

from toolkit.data.dataset import DataSource, find_data, identify_data, require_same_data
from toolkit.data.images import Images
from toolkit.data.split import split_images
from toolkit.deploy.export import export_graph
from toolkit.deploy.quantize import CALIBRATION_METHODS, choose_calibration_images, to_int8
from toolkit.errors import ToolkitError
from toolkit.evaluation.metrics import compute_logits
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint

COUNTS = (128, 512)  # images; for histograms, ONNX Runtime keeps every activation in memory, 3 MB per image
DRAWS = 5
BATCH = 500


@dataclass(frozen=True)
class Result:
    """The figures of one calibration, or of float32 (`method` is "none").

    Attributes:
        method: how the range of an activation is computed from the images.
        reduce_range: whether weights have 7 bits instead of 8.
        images: number of calibration images.
        draw: seed that selects them.
        correct: number of validation images that are classified correctly.
        validation_images: number of validation images.
        mean_logit_difference, largest_logit_difference: from float32, over all logits of the validation images.
        labels_changed: number of validation images whose label differs from that of float32.
        bytes: size of the model without metadata.
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
    """Yield the figures of float32, then those of every calibration as soon as it is evaluated.

    Raises:
        ToolkitError: the checkpoint was trained on other data, or no validation images were held out.
    """
    train, validation = split_as_trained(checkpoint, source)
    network = checkpoint.network()
    graph = export_graph(network)
    expected = compute_logits(network, validation.images).numpy()
    labels = validation.labels.numpy()
    float32 = {"method": "none", "reduce_range": False, "images": 0, "draw": 0, "bytes": graph.ByteSize()}
    yield _result(expected, expected, labels, **float32)
    for method, count, reduce_range, draw in product(CALIBRATION_METHODS, counts, (True, False), range(draws)):
        images = choose_calibration_images(train, count=count, seed=draw)
        model, _ = to_int8(graph, images, method=method, reduce_range=reduce_range)
        content = model.SerializeToString()
        how = {"method": method, "reduce_range": reduce_range, "images": len(images), "draw": draw}
        yield _result(compute_onnx_logits(content, validation), expected, labels, **how, bytes=len(content))


def split_as_trained(checkpoint: Checkpoint, source: DataSource) -> tuple[Images, Images]:
    """The training images and the validation images of the checkpoint's run."""
    images = source.train()
    require_same_data(checkpoint.data, identify_data(source.name, images), what="the checkpoint")
    size = checkpoint.recipe.get("run", {}).get("val_size", 0)
    if not size:
        raise ToolkitError("the checkpoint was trained on all images: take one of a run with run.val_size above 0")
    return split_images(images, size)


def compute_onnx_logits(model: bytes, images: Images) -> np.ndarray:
    """Logits by ONNX Runtime on the CPU, float32 (N, 10)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batches = images.images.permute(0, 2, 3, 1).contiguous().split(BATCH)  # (B, 32, 32, 3) each
    return np.concatenate([session.run(["logits"], {"images": batch.numpy()})[0] for batch in batches])


def _result(logits: np.ndarray, expected: np.ndarray, labels: np.ndarray, **how: Any) -> Result:
    differences, labels_found = np.abs(logits - expected), logits.argmax(1)
    return Result(
        correct=int((labels_found == labels).sum()),
        validation_images=len(labels),
        mean_logit_difference=float(differences.mean()),
        largest_logit_difference=float(differences.max()),
        labels_changed=int((labels_found != expected.argmax(1)).sum()),
        **how,
    )


def format_line(result: Result) -> str:
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
    options = parser.parse_args()
    try:
        checkpoint = load_checkpoint(options.checkpoint)
        print(HEADER)
        results = []
        for result in compare(checkpoint, find_data(options.data), counts=options.images, draws=options.draws):
            results.append(result)
            print(format_line(result), flush=True)
    except ToolkitError as error:
        sys.exit(f"error: {error}")
    if options.json:
        summary = {
            "model": checkpoint.model,
            "epoch": checkpoint.epoch,
            "data": checkpoint.data,
            "libraries": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            "results": [dataclasses.asdict(result) | {"accuracy": result.accuracy} for result in results],
        }
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
