"""What the gate says: each check with the figure found and its limit, and the figures themselves."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ModelRejected


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        found: the figure, with its unit.
        limit: what it is held against.
        passed: None where the figure is only reported, or could not be had: the limit says which.
    """

    name: str
    found: str
    limit: str
    passed: bool | None


@dataclass(frozen=True)
class Figures:
    """What was computed; None where the gate did not come that far, or had no checkpoint.

    Attributes:
        provider: "cpu" or "cuda".
        min_accuracy: the floor, in (0, 1].
        bytes: size of the file.
        sha256: of the file.
        opset: version of the standard operators.
        precision: "fp32", "fp16" or "int8", as the graph has it.
        input: "uint8-nhwc" or "float-nchw".
        test_images: how many images the whole test set has.
        test_correct: how many of them the model names right.
        test_accuracy: in [0, 1].
        required_correct: the floor as a count of images.
        near_ties: test images whose two best logits are so close that either may come first (fp32 only, else 0).
        reference_correct: how many test images PyTorch names right, in float32.
        max_logit_difference: from PyTorch's logits, over the random and the test images.
        differing_labels: test images that the model and PyTorch name differently.
    """

    provider: str
    min_accuracy: float
    bytes: int
    sha256: str
    opset: int | None = None
    precision: str | None = None
    input: str | None = None
    test_images: int | None = None
    test_correct: int | None = None
    test_accuracy: float | None = None
    required_correct: int | None = None
    near_ties: int | None = None
    reference_correct: int | None = None
    max_logit_difference: float | None = None
    differing_labels: int | None = None


@dataclass(frozen=True)
class Report:
    """The gate's verdict.

    Attributes:
        passed: whether every check passed that could fail.
        checks: in the order in which they were made; the last one failed where `passed` is false.
        figures: what was computed.
    """

    passed: bool
    checks: tuple[Check, ...]
    figures: Figures

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"checks": [dataclasses.asdict(check) for check in self.checks]}


class Rejected(ModelRejected):
    """The gate's refusal: the message names the check that failed, `report` holds all that was found until then."""

    def __init__(self, report: Report) -> None:
        failed = report.checks[-1]
        super().__init__(f"the model is rejected: {failed.name}: found {failed.found}; the limit is: {failed.limit}")
        self.report = report
