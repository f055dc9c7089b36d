"""The report of the gate: each check with figure and limit, and all figures."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ModelRejected


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: of the check.
        found: the figure, with its unit.
        limit: the limit of the figure.
        passed: None if the figure is only reported, or could not be computed; `limit` then says which.
    """

    name: str
    found: str
    limit: str
    passed: bool | None


@dataclass(frozen=True)
class Figures:
    """Figures that the gate computed; None if it stopped earlier, or if the figure needs a missing checkpoint.

    Attributes:
        provider: "cpu" or "cuda".
        min_accuracy: the floor, in (0, 1].
        bytes: size of the file.
        sha256: of the file.
        opset: version of the standard operators.
        precision: "fp32", "fp16" or "int8", by the contents of the graph.
        input: "uint8-nhwc", "float-nchw" or "picture".
        batch_seed: seed of the random batches.
        test_images: size of the test set.
        test_correct: test images that the model classifies correctly.
        test_accuracy: in [0, 1].
        test_accuracy_interval: the 95% interval of the accuracy, by Wilson.
        test_macro_accuracy: mean of the accuracies of the classes that have test images, in [0, 1].
        required_correct: the floor as a count of images.
        near_ties: test images whose two best logits are so close that either may be first (fp32 only, else 0).
        reference_correct: test images that PyTorch classifies correctly, in float32.
        max_logit_difference: from PyTorch's logits, over the random and the test images.
        differing_labels: test images that the model and PyTorch label differently.
        pixels_compared: values of synthetic pictures that the graph resized (input "picture" only, as the next two).
        pixels_differing: number of these values that differ from the picture rule of `toolkit.inference.image`.
        largest_pixel_difference: in levels of 0 to 255.
    """

    provider: str
    min_accuracy: float
    bytes: int
    sha256: str
    opset: int | None = None
    precision: str | None = None
    input: str | None = None
    batch_seed: int | None = None
    test_images: int | None = None
    test_correct: int | None = None
    test_accuracy: float | None = None
    test_accuracy_interval: tuple[float, float] | None = None
    test_macro_accuracy: float | None = None
    required_correct: int | None = None
    near_ties: int | None = None
    reference_correct: int | None = None
    max_logit_difference: float | None = None
    differing_labels: int | None = None
    pixels_compared: int | None = None
    pixels_differing: int | None = None
    largest_pixel_difference: int | None = None


@dataclass(frozen=True)
class Report:
    """The result of the gate.

    Attributes:
        passed: whether every check passed that could fail.
        checks: in order; the last one failed if `passed` is false.
        figures: computed up to the last check.
    """

    passed: bool
    checks: tuple[Check, ...]
    figures: Figures

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"checks": [dataclasses.asdict(check) for check in self.checks]}


NEXT_STEPS = {
    "accuracy": ". Train longer or by another recipe, name the data that it was trained on with --data, or accept less "
    "with --min-accuracy",
    "classes": ". Name the data that the model was trained on with --data",
}


class Rejected(ModelRejected):
    """A model failed the gate. The message names the failed check and what to do; `report` ends with that check."""

    def __init__(self, report: Report) -> None:
        failed = report.checks[-1]
        message = f"the model is rejected: {failed.name}: found {failed.found}; the limit is: {failed.limit}"
        super().__init__(f"{message}{NEXT_STEPS.get(failed.name, '')}")
        self.report = report
