"""The gate: an ONNX file passes every check, in a fixed order, or it is rejected with the figure that failed.

The order: valid ONNX; names, types and shapes; finite outputs; logits and labels against PyTorch over random images and
over the whole test set; accuracy; what the file says of itself. The gate believes only what it computes.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from toolkit.data import synthetic as drawn
from toolkit.data.cifar import TEST_COUNT
from toolkit.data.dataset import DataSource
from toolkit.deploy import graph
from toolkit.deploy.metadata import claims_of, disagreements, required_correct, unchecked_claims
from toolkit.deploy.quiet import quiet
from toolkit.deploy.reference import RANDOM_BATCHES, RANDOM_COUNT, TEST_BATCH, Exam, Float32, pixels, prepare_exam
from toolkit.deploy.report import Check, Figures, Rejected, Report
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference.memory import limit_memory

__all__ = ["MIN_ACCURACY", "PROVIDERS", "Check", "Figures", "Limits", "Rejected", "Report", "verify"]

MIN_ACCURACY = 0.91  # the design's floor: 9,100 of CIFAR-10's 10,000 test images

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

WHOLE_TEST_SET = {"cifar10": TEST_COUNT, "demo": drawn.TEST_COUNT}  # images

# Probabilities are computed in float32 from the logits beside them: only rounding lies between the two.
PROBABILITY_LIMIT = 1e-5


@dataclass(frozen=True)
class Limits:
    """How far a model may be from PyTorch's float32.

    Attributes:
        logit_difference: largest difference of any logit; None: reported, not judged.
        points_lost: percentage points of accuracy that may be lost; None: no label may differ at all, except where
            PyTorch's two best logits lie within twice `logit_difference`, so that both orders are right.
    """

    logit_difference: float | None
    points_lost: Fraction | None


# Two float32 programs sum in different orders: about 1e-5 apart for these networks, whose logits are near 10. 1e-3
# leaves room for other processors, and a wrong weight, mean or channel order is far above it. cuDNN's convolution
# algorithms (Winograd, FFT) differ more among themselves. float16 rounds every activation to 11 bits, which these
# networks bear without a change that counts; int8 rounds to 8 bits, so only its accuracy can be judged.
FP16 = Limits(logit_difference=0.1, points_lost=Fraction(5, 100))
INT8 = Limits(logit_difference=None, points_lost=Fraction(3, 10))
LIMITS = {
    ("fp32", "cpu"): Limits(logit_difference=1e-3, points_lost=None),
    ("fp32", "cuda"): Limits(logit_difference=5e-3, points_lost=None),
    ("fp16", "cpu"): FP16,
    ("fp16", "cuda"): FP16,
    ("int8", "cpu"): INT8,
    ("int8", "cuda"): INT8,
}


def verify(
    model: Path,
    *,
    data: DataSource,
    checkpoint: Path | None = None,
    min_accuracy: float = MIN_ACCURACY,
    provider: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Run the gate on a file that exists.

    Args:
        model: the ONNX file.
        data: the data that the model was trained on; the gate reads its whole test set.
        checkpoint: what the model was exported from; without it there is no parity with PyTorch to check.
        min_accuracy: least accuracy on the test set, in (0, 1].
        provider: "cpu" or "cuda": what ONNX Runtime must run the model on.
        progress: told in a few words what is being done.

    Raises:
        Rejected: a check failed; a `ModelRejected` whose `report` ends with that check.
        UsageError: `min_accuracy` or `provider` is not possible.
        ToolkitError: there is no such file, the checkpoint cannot be read or was trained on other data, or ONNX Runtime
            does not run on `provider` here.
    """
    check_request(min_accuracy=min_accuracy, provider=provider)
    content = graph.read_model(model)
    gate = _Gate(content, min_accuracy=min_accuracy, provider=provider)
    parsed = _check_graph(gate, content, classes=len(data.class_names))
    exam = prepare_exam(data, checkpoint, progress=progress or _silent)
    _check_answers(gate, content, exam, progress=progress or _silent)
    _check_metadata(gate, parsed, exam)
    return gate.report(passed=True)


def examine(
    content: bytes,
    exam: Exam,
    *,
    min_accuracy: float,
    provider: str,
    with_metadata: bool,
    progress: Callable[[str], None],
) -> Report:
    """The gate over a model in memory, with an exam that was prepared before. Raises as `verify` does."""
    gate = _Gate(content, min_accuracy=min_accuracy, provider=provider)
    parsed = _check_graph(gate, content, classes=len(exam.class_names))
    _check_answers(gate, content, exam, progress=progress)
    if with_metadata:
        _check_metadata(gate, parsed, exam)
    return gate.report(passed=True)


def check_request(*, min_accuracy: float, provider: str) -> None:
    """Refuse a floor or a provider that cannot be meant.

    Raises:
        UsageError: naming what is valid.
    """
    if not 0 < min_accuracy <= 1:  # false for NaN too
        raise UsageError(f"the minimum accuracy is {min_accuracy}; it must be above 0 and at most 1, such as 0.91")
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}: the providers are {', '.join(PROVIDERS)}")


class _Gate:
    """Collects checks and figures, and stops at the first check that fails."""

    def __init__(self, content: bytes, *, min_accuracy: float, provider: str) -> None:
        self.checks: list[Check] = []
        sha256 = hashlib.sha256(content).hexdigest()
        self.figures = Figures(provider=provider, min_accuracy=min_accuracy, bytes=len(content), sha256=sha256)

    @property
    def limits(self) -> Limits:
        return LIMITS[self.figures.precision or "fp32", self.figures.provider]

    def learn(self, **figures: Any) -> None:
        self.figures = dataclasses.replace(self.figures, **figures)

    def report_only(self, name: str, found: str, limit: str) -> None:
        self.checks.append(Check(name, found, limit, None))

    def require(self, passed: bool, name: str, *, found: str, limit: str) -> None:
        self.checks.append(Check(name, found, limit, passed))
        if not passed:
            raise Rejected(self.report(passed=False))

    def reject(self, name: str, *, found: str, limit: str) -> NoReturn:
        self.require(False, name, found=found, limit=limit)
        raise AssertionError("unreachable")

    def report(self, *, passed: bool) -> Report:
        return Report(passed=passed, checks=tuple(self.checks), figures=self.figures)


def _check_graph(gate: _Gate, content: bytes, *, classes: int) -> ModelProto:
    """The file as a file: nothing of it is run."""
    whole = len(content) <= graph.MAX_BYTES
    size = f"{len(content):,} bytes" if whole else f"more than {graph.MAX_BYTES:,} bytes"
    gate.require(whole, "file size", found=size, limit=f"at most {graph.MAX_BYTES:,} bytes")
    valid = "passes onnx.checker, shapes included"
    parsed = graph.parse(content)
    if parsed is None:
        gate.reject("valid ONNX", found="not an ONNX file, or not all of it", limit=valid)
    surprises = graph.surprises(parsed)
    gate.require(
        not surprises,
        "contents",
        found=_some(surprises) or "standard operators, all data inside",
        limit="the standard operators of these networks; no external data, subgraphs or functions",
    )
    fault = graph.fault(content)
    found = fault or f"opset {graph.opset_of(parsed)}, IR version {parsed.ir_version}"
    gate.require(fault is None, "valid ONNX", found=found, limit=valid)
    kind = graph.input_kind(parsed) or "uint8-nhwc"
    interface, agreed = graph.interface(parsed), graph.agreed_interface(kind, classes=classes)
    gate.require(interface == agreed, "interface", found=interface, limit=agreed)
    gate.learn(opset=graph.opset_of(parsed), precision=graph.precision_of(parsed), input=kind)
    gate.report_only("precision", str(gate.figures.precision), "reported: it decides the limits below")
    return parsed


def _check_answers(gate: _Gate, content: bytes, exam: Exam, *, progress: Callable[[str], None]) -> None:
    """What the model answers: finite, consistent, like PyTorch, and right often enough."""
    images = len(exam.labels)
    whole = WHOLE_TEST_SET.get(exam.name, images)
    gate.require(
        images >= max(whole, 1), "test images", found=f"{images:,} of {exam.name}", limit=f"the whole set of {whole:,}"
    )
    gate.learn(test_images=images, required_correct=required_correct(gate.figures.min_accuracy, images))
    progress(f"ONNX Runtime ({gate.figures.provider}): {images:,} test images")
    logits, probabilities = _answers(gate, content, exam.images, classes=len(exam.class_names))
    _check_outputs(gate, logits, probabilities)
    _check_parity(gate, logits, exam)
    _check_accuracy(gate, logits[RANDOM_COUNT:], exam)


def _answers(gate: _Gate, content: bytes, images: NDArray[np.uint8], *, classes: int) -> tuple[Float32, Float32]:
    """Logits and probabilities of all images, float32 (N, 10) each: the random ones in batches of different sizes.

    What shapes the file declares has been looked at before; these are the shapes that it gives.
    """
    session = _open(gate, content)
    rest = len(images) - RANDOM_COUNT
    sizes = [*RANDOM_BATCHES, *[TEST_BATCH] * (rest // TEST_BATCH), *[rest % TEST_BATCH] * (rest % TEST_BATCH > 0)]
    answers = []
    name, limit = "batch sizes", f"one row of {classes} per image, for any number of images"
    for batch in np.split(images, np.cumsum(sizes)[:-1]):
        feed = batch if gate.figures.input == "uint8-nhwc" else pixels(batch).numpy()
        try:
            outputs = session.run([graph.LOGITS, graph.PROBABILITIES], {graph.IMAGES: feed})
        except Exception as error:  # ONNX Runtime's errors have no common base
            gate.reject(name, found=f"with {len(batch)} images: {_first_line(error)}", limit=limit)
        if wrong := [output.shape for output in outputs if output.shape != (len(batch), classes)]:
            gate.reject(name, found=f"shape {wrong[0]} for {len(batch)} images", limit=limit)
        answers.append(outputs)
    gate.require(True, name, found=", ".join(map(str, sorted(set(sizes)))), limit=limit)
    logits, probabilities = (np.concatenate(outputs) for outputs in zip(*answers, strict=True))
    return logits, probabilities


def _open(gate: _Gate, content: bytes) -> onnxruntime.InferenceSession:
    """A session on the provider that was asked for, and on no other.

    Opened here and not by `toolkit.inference`: a mistake there must not hide from the gate.
    """
    provider = PROVIDERS[gate.figures.provider]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ToolkitError(f"this ONNX Runtime has no {provider}; it has {_some(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and reported once
    # Not its own format, whatever the bytes say: it must run what was looked at as ONNX.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    with_options: list[Any] = [provider]
    if gate.figures.provider == "cpu":
        limit_memory(options)
    if gate.figures.provider == "cuda":
        with quiet():  # it prints what it cannot find; the session says whether that mattered
            onnxruntime.preload_dlls()
        with_options = [(provider, {"use_tf32": "0"})]  # TF32 rounds to 11 bits: that would be no float32
    try:
        session = onnxruntime.InferenceSession(content, options, providers=with_options)
    except Exception as error:  # ONNX Runtime's errors have no common base
        gate.reject("ONNX Runtime", found=_first_line(error), limit=f"the model opens with {provider}")
    if session.get_providers()[0] != provider:
        raise ToolkitError(
            f"{provider} was asked for, and ONNX Runtime fell back to {_some(session.get_providers())}; "
            "`cifar doctor` says what is missing"
        )
    gate.require(True, "ONNX Runtime", found=onnxruntime.__version__, limit=f"the model opens with {provider}")
    return session


def _check_outputs(gate: _Gate, logits: Float32, probabilities: Float32) -> None:
    bad = int((~np.isfinite(logits) | ~np.isfinite(probabilities)).any(axis=1).sum())
    gate.require(bad == 0, "finite outputs", found=f"{bad:,} images with NaN or infinity", limit="none")
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    worst = float(np.abs(powers / powers.sum(axis=1, keepdims=True) - probabilities).max())
    gate.require(
        worst <= PROBABILITY_LIMIT,
        "probabilities",
        found=f"{worst:.2g} from the softmax of the logits",
        limit=f"at most {PROBABILITY_LIMIT:g}",
    )


def _check_parity(gate: _Gate, logits: Float32, exam: Exam) -> None:
    """Logits and labels against PyTorch's: over the random images, then over the test images."""
    if exam.reference is None:
        gate.report_only("parity with PyTorch", "not checked (no checkpoint)", "needs the checkpoint")
        return
    theirs = exam.reference.logits
    differences = []
    for name, part in [("random images", slice(RANDOM_COUNT)), ("test images", slice(RANDOM_COUNT, None))]:
        differences.append(float(np.abs(logits[part] - theirs[part]).max()))
        _check_logits(gate, name, differences[-1])
        _check_labels(gate, name, logits[part], theirs[part])
    differing = int((logits.argmax(1) != theirs.argmax(1))[RANDOM_COUNT:].sum())
    gate.learn(
        max_logit_difference=max(differences),
        differing_labels=differing,
        reference_correct=int((theirs[RANDOM_COUNT:].argmax(1) == exam.labels).sum()),
    )


def _check_logits(gate: _Gate, name: str, difference: float) -> None:
    check, found = f"logits, {name}", f"{difference:.2g} from PyTorch's"
    limit = gate.limits.logit_difference
    if limit is None:
        gate.report_only(check, found, "reported")
    else:
        gate.require(difference <= limit, check, found=found, limit=f"at most {limit:g}")


def _check_labels(gate: _Gate, name: str, logits: Float32, theirs: Float32) -> None:
    differ = logits.argmax(1) != theirs.argmax(1)
    check, found = f"labels, {name}", f"{int(differ.sum()):,} of {len(differ):,} differ"
    if gate.limits.points_lost is not None:
        gate.report_only(check, found, "reported")
        return
    ties = _near_ties(theirs, gate.limits)
    gate.require(
        not (differ & ~ties).any(), check, found=found, limit=f"none but the {int(ties.sum()):,} near ties of PyTorch"
    )


def _check_accuracy(gate: _Gate, logits: Float32, exam: Exam) -> None:
    """Counts of test images: against PyTorch's, then against the floor."""
    images, limits = len(exam.labels), gate.limits
    correct = int((logits.argmax(1) == exam.labels).sum())
    theirs = logits if exam.reference is None else exam.reference.logits[RANDOM_COUNT:]
    near_ties = int(_near_ties(theirs, limits).sum()) if limits.points_lost is None else 0
    gate.learn(test_correct=correct, test_accuracy=correct / images, near_ties=near_ties)
    if exam.reference:
        lost = (gate.figures.reference_correct or 0) - correct
        allowed = _image_slack(gate)
        points = f" ({float(limits.points_lost):g} points)" if limits.points_lost is not None else ", the near ties"
        gate.require(
            lost <= allowed,
            "accuracy lost",
            found=f"{correct:,} right, and {gate.figures.reference_correct:,} by PyTorch",
            limit=f"at most {allowed:,} fewer{points}",
        )
    required = gate.figures.required_correct or 0
    gate.require(
        correct >= required,
        "accuracy",
        found=f"{correct:,} of {images:,} right",
        limit=f"at least {required:,} ({gate.figures.min_accuracy:g})",
    )


def _check_metadata(gate: _Gate, model: ModelProto, exam: Exam) -> None:
    found = disagreements(
        claims_of(model),
        gate.figures,
        exam,
        logit_slack=gate.limits.logit_difference or 0.0,
        image_slack=_image_slack(gate),
    )
    limit = "each key there, and saying what was computed"
    gate.require(not found, "metadata", found="; ".join(found[:3]) or "as computed", limit=limit)
    believed = unchecked_claims(with_checkpoint=exam.reference is not None)
    gate.report_only("claims not checked", ", ".join(believed), "nothing here to hold them against")


def _near_ties(logits: Float32, limits: Limits) -> NDArray[np.bool_]:
    """Where a difference within the limit can exchange the two best labels. (N, 10) -> bool (N,)."""
    best = np.partition(logits, -2, axis=1)[:, -2:]
    ties: NDArray[np.bool_] = best[:, 1] - best[:, 0] <= 2 * (limits.logit_difference or 0.0)
    return ties


def _image_slack(gate: _Gate) -> int:
    """How many test images may change between right and wrong within the limits."""
    if gate.limits.points_lost is None:
        return gate.figures.near_ties or 0
    return math.floor(gate.limits.points_lost * (gate.figures.test_images or 0) / 100)


def _some(items: Iterable[str]) -> str:
    """The first few, with how many more there are."""
    items = list(items)
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _silent(message: str) -> None:
    pass
