"""What an ONNX file says of itself under `cifar.`: the export writes it, the gate compares it with what it computed."""

import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from onnx import ModelProto

from toolkit import __version__
from toolkit.deploy import graph
from toolkit.deploy.reference import Exam, Reference
from toolkit.deploy.report import Figures
from toolkit.evaluation.evaluate import identity_in, is_checkpoint
from toolkit.runs.checkpoint import load_checkpoint

PREFIX = "cifar."
NOT_MEASURED = "not measured"

# Claims that are the same everywhere are compared as text; measured ones vary with the processor's rounding.
FROM_EXAM = ("class_names", "precision", "input", "data", "test_sha256", "test_images")
FROM_CHECKPOINT = ("model", "recipe", "val_accuracy", "checkpoint_sha256")
MEASURED = ("test_correct", "test_accuracy", "min_accuracy", "parity_max_logit_difference", "parity_differing_labels")
KEYS = (*FROM_EXAM, *FROM_CHECKPOINT, *MEASURED, "toolkit_version")
CALIBRATION = "calibration"  # an int8 model's only


def claims_of(model: ModelProto) -> dict[str, str]:
    """The properties under `cifar.`, without that prefix."""
    named = {item.key: item.value for item in model.metadata_props}
    return {key.removeprefix(PREFIX): value for key, value in named.items() if key.startswith(PREFIX)}


def write_claims(model: ModelProto, claims: Mapping[str, str]) -> None:
    """Replace all metadata properties of `model` by `claims`."""
    del model.metadata_props[:]
    for key, value in sorted(claims.items()):
        model.metadata_props.add(key=PREFIX + key, value=value)


def claims_for(figures: Figures, exam: Exam, *, calibration: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What a model with these figures must say; only what follows from them, where the exam has no reference."""
    claims = {
        "class_names": json.dumps(exam.class_names),
        "precision": str(figures.precision),
        "input": str(figures.input),
        "data": _json(exam.data),
        "test_sha256": exam.test_sha256,
        "test_images": str(figures.test_images),
        "test_correct": str(figures.test_correct),
        "test_accuracy": accuracy_text(figures.test_correct or 0, figures.test_images or 1),
        "min_accuracy": str(figures.min_accuracy),
        "toolkit_version": __version__,
    }
    if exam.reference:
        claims |= _of_checkpoint(exam.reference)
        claims["parity_max_logit_difference"] = f"{figures.max_logit_difference:.3g}"
        claims["parity_differing_labels"] = str(figures.differing_labels)
    if calibration is not None:
        claims[CALIBRATION] = _json(calibration)
    return claims


def disagreements(
    claims: Mapping[str, str], figures: Figures, exam: Exam, *, logit_slack: float, image_slack: int
) -> list[str]:
    """The claims that are missing, unknown, or not what was computed; each as "key: says ..., and ... was computed".

    Args:
        claims: `claims_of` the model.
        figures: what the gate computed.
        exam: what it was computed from.
        logit_slack: by how much the largest logit difference may vary from machine to machine.
        image_slack: how many test images may change their label from machine to machine.
    """
    expected_keys = {*KEYS, CALIBRATION} if figures.precision == "int8" else set(KEYS)
    found = [f"{PREFIX}{key} is missing" for key in sorted(expected_keys - claims.keys())]
    found += [f"{PREFIX}{key} is unknown" for key in sorted(claims.keys() - expected_keys)]
    if found:
        return found
    right = claims_for(figures, exam)
    exact = FROM_EXAM + FROM_CHECKPOINT if exam.reference else FROM_EXAM
    found = [_disagreement(key, claims[key], right[key]) for key in exact if claims[key] != right[key]]
    count, images = _count(claims["test_correct"]), figures.test_images or 1
    if not abs(count - (figures.test_correct or 0)) <= image_slack:
        found.append(_disagreement("test_correct", claims["test_correct"], right["test_correct"]))
    elif claims["test_accuracy"] != accuracy_text(int(count), images):
        found.append(_disagreement("test_accuracy", claims["test_accuracy"], accuracy_text(int(count), images)))
    floor = _number(claims["min_accuracy"])
    if not (0 < floor <= 1 and required_correct(floor, images) <= count):
        found.append(_disagreement("min_accuracy", claims["min_accuracy"], f"an accuracy of {right['test_accuracy']}"))
    if exam.reference:
        slacks = {"parity_max_logit_difference": logit_slack, "parity_differing_labels": image_slack}
        for key, slack in slacks.items():
            if not _alike(_number(claims[key]), float(right[key]), slack):
                found.append(_disagreement(key, claims[key], right[key]))
    return found


def unchecked_claims(*, with_checkpoint: bool) -> tuple[str, ...]:
    """The claims that the gate can compare with nothing: with the checkpoint, only how the file was made."""
    of_the_making = ("toolkit_version", CALIBRATION)
    if with_checkpoint:
        return of_the_making
    return (*FROM_CHECKPOINT, "parity_max_logit_difference", "parity_differing_labels", *of_the_making)


def required_correct(min_accuracy: float, images: int) -> int:
    """The least count of right answers that is `min_accuracy` of `images`, exactly: 0.91 of 10,000 is 9,100.

    The floor counts as the decimal number that was written, not as the binary one next to it.
    """
    return math.ceil(Fraction(repr(float(min_accuracy))) * images)


def accuracy_text(correct: int, images: int) -> str:
    """Four decimals, which are exact for 10,000 images."""
    return f"{correct / images:.4f}"


def _of_checkpoint(reference: Reference) -> dict[str, str]:
    checkpoint = reference.checkpoint
    return {
        "model": checkpoint.model,
        "recipe": _json(checkpoint.recipe),
        "val_accuracy": NOT_MEASURED if checkpoint.val_accuracy is None else f"{checkpoint.val_accuracy:.4f}",
        "checkpoint_sha256": reference.checkpoint_sha256,
    }


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _number(text: str) -> float:
    """NaN, which no comparison accepts, where the text is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _count(text: str) -> float:
    return _number(text) if text.isascii() and text.isdigit() else math.nan


def _alike(claimed: float, found: float, slack: float) -> bool:
    """Within a factor of two, and `slack` for what is next to nothing: rounding differs between processors."""
    return 0 <= claimed <= 2 * found + slack and found <= 2 * claimed + slack


def _disagreement(key: str, claimed: str, computed: str) -> str:
    return f"{PREFIX}{key} says {_short(claimed)}, and {_short(computed)} was computed"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def claimed_data(path: Path) -> dict[str, str]:
    """The identity of the training data that a checkpoint or an ONNX file carries: "name" and "train_sha256".

    An empty one, which no data have, where an ONNX file carries none or is no model of this toolkit. Nothing of an ONNX
    file is run for that: the gate has not looked at it yet.

    Raises:
        ToolkitError: the file cannot be read.
    """
    if is_checkpoint(path):
        return load_checkpoint(path).data
    content = graph.read_model(path)
    model = graph.parse(content) if len(content) <= graph.MAX_BYTES else None
    return {} if model is None else identity_in(claims_of(model))
