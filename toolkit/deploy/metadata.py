"""Metadata of an ONNX file under `cifar.`: the export writes it, the gate compares it with its own figures."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import onnxruntime
from onnx import ModelProto

from toolkit import __version__
from toolkit.deploy.graph import parse
from toolkit.deploy.picture_input import TESTED_RUNTIME
from toolkit.deploy.reference import Reference
from toolkit.deploy.report import Figures
from toolkit.evaluation.evaluate import parse_identity
from toolkit.files import shorten
from toolkit.inference.model_file import find_fault
from toolkit.inference.model_graph import METADATA_PREFIX
from toolkit.runs.checkpoint import Checkpoint

NOT_MEASURED = "not measured"

# Values that are the same everywhere are compared as text; measured ones vary with the processor's rounding.
FROM_DATA = ("class_names", "precision", "input", "data", "test_sha256", "test_images")
FROM_CHECKPOINT = ("model", "recipe", "val_accuracy", "checkpoint_sha256")
MEASURED = ("test_correct", "test_accuracy", "min_accuracy", "parity_max_logit_difference", "parity_differing_labels")
KEYS = (*FROM_DATA, *FROM_CHECKPOINT, *MEASURED, "toolkit_version")
DATE = "date"  # of the export, UTC; files of earlier releases have none
CALIBRATION = "calibration"  # only of int8 models
RUNTIMES = "runtimes"  # only for the input format "picture": runtimes in which the picture rule was tested


def read_metadata(model: ModelProto) -> dict[str, str]:
    """The properties under `cifar.`, without that prefix."""
    named = {item.key: item.value for item in model.metadata_props}
    prefix = METADATA_PREFIX
    return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}


def write_metadata(model: ModelProto, values: Mapping[str, str]) -> None:
    """Replace all properties of `model` by `values`."""
    del model.metadata_props[:]
    for key, value in sorted(values.items()):
        model.metadata_props.add(key=METADATA_PREFIX + key, value=value)


def build_metadata(
    figures: Figures, reference: Reference, *, calibration: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The metadata of a model with these figures; without a checkpoint, only the keys that do not need one."""
    values = {
        "class_names": json.dumps(reference.class_names),
        "precision": str(figures.precision),
        "input": str(figures.input),
        "data": _to_json(reference.data),
        "test_sha256": reference.test_sha256,
        "test_images": str(figures.test_images),
        "test_correct": str(figures.test_correct),
        "test_accuracy": format_accuracy(figures.test_correct or 0, figures.test_images or 1),
        "min_accuracy": str(figures.min_accuracy),
        "toolkit_version": __version__,
        DATE: datetime.now(UTC).date().isoformat(),
    }
    if figures.input == "picture":
        values[RUNTIMES] = json.dumps([f"onnxruntime {onnxruntime.__version__}", TESTED_RUNTIME])
    if reference.checkpoint:
        values |= _from_checkpoint(reference.checkpoint)
        values["parity_max_logit_difference"] = f"{figures.max_logit_difference:.3g}"
        values["parity_differing_labels"] = str(figures.differing_labels)
    if calibration is not None:
        values[CALIBRATION] = _to_json(calibration)
    return values


def find_mismatches(
    metadata: Mapping[str, str], figures: Figures, reference: Reference, *, logit_tolerance: float, image_tolerance: int
) -> list[str]:
    """List the keys that are missing, unknown, or differ from the gate's figures.

    Args:
        metadata: from `read_metadata`.
        figures: from the gate.
        reference: the data behind the figures.
        logit_tolerance: how much the largest logit difference may vary from machine to machine.
        image_tolerance: how many test images may change their label from machine to machine.
    """
    required = _required_keys(figures)
    found = [f"{METADATA_PREFIX}{key} is missing" for key in sorted(required - metadata.keys())]
    found += [f"{METADATA_PREFIX}{key} is unknown" for key in sorted(metadata.keys() - required - {DATE})]
    if found:
        return found
    computed = build_metadata(figures, reference)
    exact = FROM_DATA + FROM_CHECKPOINT if reference.checkpoint else FROM_DATA
    found = [_mismatch(key, metadata[key], computed[key]) for key in exact if metadata[key] != computed[key]]
    count, images = _parse_count(metadata["test_correct"]), figures.test_images or 1
    if not abs(count - (figures.test_correct or 0)) <= image_tolerance:
        found.append(_mismatch("test_correct", metadata["test_correct"], computed["test_correct"]))
    elif metadata["test_accuracy"] != format_accuracy(int(count), images):
        found.append(_mismatch("test_accuracy", metadata["test_accuracy"], format_accuracy(int(count), images)))
    floor = _parse_number(metadata["min_accuracy"])
    if not (0 < floor <= 1 and required_correct(floor, images) <= count):
        found.append(_mismatch("min_accuracy", metadata["min_accuracy"], f"accuracy {computed['test_accuracy']}"))
    if reference.checkpoint:
        slacks = {"parity_max_logit_difference": logit_tolerance, "parity_differing_labels": image_tolerance}
        for key, slack in slacks.items():
            if not _is_close(_parse_number(metadata[key]), float(computed[key]), slack):
                found.append(_mismatch(key, metadata[key], computed[key]))
    return found


def _required_keys(figures: Figures) -> set[str]:
    keys = set(KEYS)
    if figures.precision == "int8":
        keys.add(CALIBRATION)
    if figures.input == "picture":
        keys.add(RUNTIMES)
    return keys


def find_unverified_keys(metadata: Mapping[str, str], *, with_checkpoint: bool) -> tuple[str, ...]:
    """Return the keys that the gate cannot check; with a checkpoint, they only describe how the file was made."""
    keys: tuple[str, ...] = ("toolkit_version", DATE, CALIBRATION, RUNTIMES)
    if not with_checkpoint:
        keys = (*FROM_CHECKPOINT, "parity_max_logit_difference", "parity_differing_labels", *keys)
    return tuple(key for key in keys if key in metadata)


def required_correct(min_accuracy: float, images: int) -> int:
    """Return the smallest number of correct images that reaches `min_accuracy`: 9,100 of 10,000 for 0.91.

    `min_accuracy` stands for the decimal number that was written, not for its binary approximation.
    """
    return math.ceil(Fraction(repr(float(min_accuracy))) * images)


def format_accuracy(correct: int, images: int) -> str:
    """Four decimals, which are exact for 10,000 images."""
    return f"{correct / images:.4f}"


def _from_checkpoint(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "model": checkpoint.model,
        "recipe": _to_json(checkpoint.recipe),
        "val_accuracy": NOT_MEASURED if checkpoint.val_accuracy is None else f"{checkpoint.val_accuracy:.4f}",
        "checkpoint_sha256": str(checkpoint.sha256),
    }


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _parse_number(text: str) -> float:
    """Parse a number; return NaN, which fails every comparison, if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _parse_count(text: str) -> float:
    return _parse_number(text) if text.isascii() and text.isdigit() else math.nan


def _is_close(written: float, computed: float, slack: float) -> bool:
    """Within a factor of two plus `slack`: rounding differs between processors."""
    return 0 <= written <= 2 * computed + slack and computed <= 2 * written + slack


def _mismatch(key: str, written: str, computed: str) -> str:
    return f"{METADATA_PREFIX}{key} is {shorten(written, limit=80)}, computed: {shorten(computed, limit=80)}"


def read_data_identity(content: bytes) -> dict[str, str]:
    """Return the identity of the training data recorded in an ONNX file, without running the model.

    Empty if the file records none, or if the gate will reject its contents.
    """
    model = None if find_fault(content) else parse(content)
    return parse_identity(read_metadata(model)) if model else {}
