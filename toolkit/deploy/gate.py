"""The gate: the checks on an ONNX file; the first that fails rejects it.

`verification.verify` calls `check_file` (contents and valid ONNX; names, types and shapes), `check_graph` (the graph
against an export of the checkpoint), `check_outputs` (pixels against the picture rule if that is inside the graph; the
same outputs in batches of random sizes; finite outputs; softmax; logits and labels against PyTorch over random images
and the whole test set; accuracy) and `check_metadata`, in this order. `export` calls the first and the third. The gate
trusts no figure stored in the file: it computes each one.
"""

import dataclasses
import hashlib
import json
import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from toolkit.data import synthetic
from toolkit.data.cifar import TEST_COUNT
from toolkit.deploy import graph
from toolkit.deploy.accuracy import compute_wilson_interval, macro_accuracy
from toolkit.deploy.batches import draw_batches
from toolkit.deploy.graph_comparison import find_difference
from toolkit.deploy.metadata import find_mismatches, find_unverified_keys, read_metadata, required_correct
from toolkit.deploy.odd_pictures import draw_pictures
from toolkit.deploy.picture_input import expose_pixels
from toolkit.deploy.pixel_check import LEVEL_LIMIT, PICTURE_LOGIT_LIMIT, compare_pixels
from toolkit.deploy.quiet import quiet
from toolkit.deploy.reference import RANDOM_COUNT, Float32, Reference, to_pixels
from toolkit.deploy.report import Check, Figures, Rejected, Report
from toolkit.errors import ToolkitError, UsageError, first_line
from toolkit.evaluation.evaluate import parse_identity
from toolkit.inference.memory import limit_memory
from toolkit.inference.model_file import find_fault
from toolkit.reporting import Note

GateProvider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

WHOLE_TEST_SET = {"cifar10": TEST_COUNT, "cifar100": TEST_COUNT, "demo": synthetic.TEST_COUNT}  # images

# The graph computes the probabilities from the logits in float32: they differ from the exact softmax by rounding only.
PROBABILITY_LIMIT = 1e-5


@dataclass(frozen=True)
class Tolerances:
    """How far a model may differ from PyTorch in float32.

    Attributes:
        logit_difference: largest allowed difference of a logit; None: reported only.
        points_lost: largest allowed loss of accuracy, in percentage points; None: all labels must be equal, except
            where PyTorch's two best logits differ by at most twice `logit_difference` (near ties).
        batch_difference: largest allowed difference between the logits of one picture in two batches.
    """

    logit_difference: float | None
    points_lost: Fraction | None
    batch_difference: float


# fp32: implementations sum in different orders; for these networks logits (about 10) then differ by about 1e-5. 1e-3
# leaves room for other CPUs, while a wrong weight, mean or channel order exceeds it by far.
# fp32 on cuda: cuDNN's convolution algorithms (Winograd, FFT) differ more from each other.
# fp16: each activation has 11 significant bits, without a measurable loss of accuracy for these networks.
# int8: 8 bits, so only the accuracy is limited.
# batch_difference: a library may choose its algorithm by batch size, which changes rounding; in int8, an activation
# near a rounding boundary may move by one step.
FP16 = Tolerances(logit_difference=0.1, points_lost=Fraction(5, 100), batch_difference=0.1)
INT8 = Tolerances(logit_difference=None, points_lost=Fraction(3, 10), batch_difference=0.5)
TOLERANCES = {
    ("fp32", "cpu"): Tolerances(logit_difference=1e-3, points_lost=None, batch_difference=1e-3),
    ("fp32", "cuda"): Tolerances(logit_difference=5e-3, points_lost=None, batch_difference=5e-3),
    ("fp16", "cpu"): FP16,
    ("fp16", "cuda"): FP16,
    ("int8", "cpu"): INT8,
    ("int8", "cuda"): INT8,
}


def check_arguments(*, min_accuracy: float | None, provider: str) -> None:
    """Raise `UsageError` for a minimum accuracy outside (0, 1] or an unknown provider."""
    if min_accuracy is not None and not 0 < min_accuracy <= 1:  # false for NaN too
        raise UsageError(f"the minimum accuracy is {min_accuracy}; it must be above 0 and at most 1, such as 0.91")
    if provider not in get_args(GateProvider):
        raise UsageError(f"unknown provider {provider!r}: the providers are {', '.join(PROVIDERS)}")


class Gate:
    """The checks on the bytes of a model, and the figures that they collect. Call `check_file` first."""

    def __init__(self, content: bytes, *, min_accuracy: float, provider: GateProvider) -> None:
        self.content = content
        self.provider: GateProvider = provider
        self.checks: list[Check] = []
        sha256 = hashlib.sha256(content).hexdigest()
        self.figures = Figures(provider=provider, min_accuracy=min_accuracy, bytes=len(content), sha256=sha256)
        self.model: ModelProto | None = None  # parsed by check_file

    @property
    def tolerances(self) -> Tolerances:
        return TOLERANCES[self.figures.precision or "fp32", self.provider]

    def report(self, *, passed: bool) -> Report:
        return Report(passed=passed, checks=tuple(self.checks), figures=self.figures)

    def check_file(self, class_names: tuple[str, ...]) -> None:
        """Check contents, validity and interface, without running anything."""
        fault = find_fault(self.content)
        limit = "what `cifar export` writes: its operators, shapes, sizes and metadata keys"
        self._require(fault is None, "contents", found=fault or "as `cifar export` writes", limit=limit)
        valid = "passes onnx.checker, shapes included"
        model = graph.parse(self.content)
        if model is None:
            self._reject("valid ONNX", found="not an ONNX file, or not all of it", limit=valid)
        invalid = graph.find_invalid(self.content)
        found = invalid or f"opset {graph.read_opset(model)}, IR version {model.ir_version}"
        self._require(invalid is None, "valid ONNX", found=found, limit=valid)
        input_format = graph.detect_input_format(model) or "uint8-nhwc"
        interface = graph.describe_interface(model)
        required = graph.required_interface(input_format, classes=len(class_names))
        self._require(interface == required, "interface", found=interface, limit=required)
        self._check_class_names(model, class_names)
        self._record(opset=graph.read_opset(model), precision=graph.detect_precision(model), input=input_format)
        self._report_only("precision", str(self.figures.precision), "sets the limits below")
        self.model = model

    def _check_class_names(self, model: ModelProto, class_names: tuple[str, ...]) -> None:
        """Reject a model with other class names; `check_metadata` rejects a file without class names."""
        text = read_metadata(model).get("class_names")
        required = json.dumps(class_names)
        if text is not None:
            self._require(text == required, "classes", found=text[:200], limit=required[:200])

    def check_graph(self, rebuilt: ModelProto | None) -> None:
        """Compare structure and weights with the graph of the checkpoint, if there is one."""
        assert self.model is not None
        limit = "the nodes and weights that the checkpoint gives"
        if rebuilt is None:
            self._report_only("graph", "not compared (no checkpoint)", "needs the checkpoint")
            return
        difference = find_difference(self.model, rebuilt)
        self._require(difference is None, "graph", found=difference or f"{len(rebuilt.graph.node)} nodes", limit=limit)

    def read_data_identity(self) -> dict[str, str]:
        """Return the identity of the training data from the metadata; empty if it is missing or malformed."""
        assert self.model is not None
        return parse_identity(read_metadata(self.model))

    def check_outputs(self, reference: Reference, *, note: Note) -> None:
        """Check that outputs are finite, consistent, within the tolerance of PyTorch's, and accurate enough."""
        images = len(reference.labels)
        whole = WHOLE_TEST_SET.get(reference.name, images)
        found, limit = f"{images:,} of {reference.name}", f"the whole set of {whole:,}"
        self._require(images >= max(whole, 1), "test images", found=found, limit=limit)
        self._record(test_images=images, required_correct=required_correct(self.figures.min_accuracy, images))
        note(f"ONNX Runtime ({self.figures.provider}): {images:,} test images")
        logits, probabilities = self._run_checked(reference.images, classes=len(reference.class_names))
        self._check_values(logits, probabilities)
        self._compare_with_pytorch(logits, reference)
        self._check_accuracy(logits[RANDOM_COUNT:], reference)

    def check_metadata(self, reference: Reference) -> None:
        """Compare the metadata with the figures."""
        assert self.model is not None
        found = find_mismatches(
            read_metadata(self.model),
            self.figures,
            reference,
            logit_tolerance=self.tolerances.logit_difference or 0.0,
            image_tolerance=self._allowed_extra_errors(),
        )
        limit = "every key present, with the computed value"
        self._require(not found, "metadata", found="; ".join(found[:3]) or "as computed", limit=limit)
        unverified = find_unverified_keys(read_metadata(self.model), with_checkpoint=reference.checkpoint is not None)
        self._report_only("metadata not checked", ", ".join(unverified), "nothing to compare with")

    def _record(self, **figures: Any) -> None:
        self.figures = dataclasses.replace(self.figures, **figures)

    def _report_only(self, name: str, found: str, limit: str) -> None:
        self.checks.append(Check(name, found, limit, None))

    def _require(self, passed: bool, name: str, *, found: str, limit: str) -> None:
        if not passed:
            self._reject(name, found=found, limit=limit)
        self.checks.append(Check(name, found, limit, True))

    def _reject(self, name: str, *, found: str, limit: str) -> NoReturn:
        self.checks.append(Check(name, found, limit, False))
        raise Rejected(self.report(passed=False))

    def _run_checked(self, images: NDArray[np.uint8], *, classes: int) -> tuple[Float32, Float32]:
        """Run the images in batches of random sizes (`draw_batches`); return logits and probabilities, float32 (N, K).

        Checks the actual shapes of the outputs; `check_file` checked the declared ones.
        """
        session, seed = self._open_file(), secrets.randbits(32)
        self._record(batch_seed=seed)
        if self.figures.input == "picture":
            self._check_pixels(session)
        batches = self._draw_batches(len(images), seed=seed)
        results: list[tuple[Float32, Float32]] = []
        name, limit = "batch sizes", f"one row of {classes} per image"
        if self.figures.input != "picture":
            limit += ", for any number of images"
        for batch in batches:
            try:
                outputs = session.run([graph.LOGITS, graph.PROBABILITIES], self._make_input(images[batch]))
            except Exception as error:  # ONNX Runtime's errors have no common base
                self._reject(name, found=f"with {len(batch)} images: {first_line(error)}", limit=limit)
            if wrong := [output.shape for output in outputs if output.shape != (len(batch), classes)]:
                self._reject(name, found=f"shape {wrong[0]} for {len(batch)} images", limit=limit)
            results.append(outputs)
        found = f"{len(batches):,} batches of 1 to {max(map(len, batches))} images, drawn with seed {seed}"
        self._require(True, name, found=found, limit=limit)
        order = np.concatenate(batches)
        logits, probabilities = (np.concatenate(outputs) for outputs in zip(*results, strict=True))
        _, first_run = np.unique(order, return_index=True)
        self._check_repeated(logits, logits[first_run][order], repeated=len(order) - len(images))
        return logits[first_run], probabilities[first_run]

    def _check_repeated(self, logits: Float32, first: Float32, *, repeated: int) -> None:
        """Compare the logits of every run of an image with those of its first run, (N, K) each."""
        with np.errstate(invalid="ignore"):  # infinity - infinity is NaN; `_check_values` rejects it
            difference = float(np.nan_to_num(np.abs(logits - first)).max())
        name, limit = "same image in another batch", self.tolerances.batch_difference
        found = f"logits of {repeated:,} images differ by up to {difference:.2g}"
        self._require(difference <= limit, name, found=found, limit=f"at most {limit:g}")

    def _draw_batches(self, images: int, *, seed: int) -> list[NDArray[np.int64]]:
        """Draw the image indices of each call: one per call if the input is "picture", else a batch."""
        batches = draw_batches(images, seed=seed)
        return list(np.concatenate(batches)[:, None]) if self.figures.input == "picture" else batches

    def _make_input(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """uint8 (N, 32, 32, 3) as the input of the file."""
        if self.figures.input == "picture":
            return {graph.PICTURE: batch[0]}
        return {graph.IMAGES: batch if self.figures.input == "uint8-nhwc" else to_pixels(batch).numpy()}

    def _check_pixels(self, session: onnxruntime.InferenceSession) -> None:
        """Compare the pixels that the graph computes from synthetic pictures with the picture rule.

        The pixels come from a copy of the graph. The file must give a picture the logits that it gives those pixels, so
        its network receives them.
        """
        assert self.model is not None
        copy = self._open_session(expose_pixels(self.model).SerializeToString())
        name, limit = "pixels", f"at most {LEVEL_LIMIT} level from the picture rule; 32x32 pictures unchanged"
        try:
            found = compare_pixels(
                pixels_of=lambda picture: copy.run([graph.IMAGES], {graph.PICTURE: picture})[0][0],
                logits_of=lambda picture: session.run([graph.LOGITS], {graph.PICTURE: picture})[0],
                pictures=draw_pictures(),
            )
        except Exception as error:  # ONNX Runtime's errors have no common base
            self._reject(name, found=first_line(error), limit=limit)
        self._record(
            pixels_compared=found.compared,
            pixels_differing=found.differing,
            largest_pixel_difference=found.largest,
        )
        self._require(found.largest <= LEVEL_LIMIT and not found.changed, name, found=str(found), limit=limit)
        difference, limit = f"{found.logits:.2g} from those of their 32x32 pixels", f"at most {PICTURE_LOGIT_LIMIT:g}"
        self._require(found.logits <= PICTURE_LOGIT_LIMIT, "logits, synthetic pictures", found=difference, limit=limit)

    def _open_file(self) -> onnxruntime.InferenceSession:
        """Open the file on the requested provider and on no other."""
        session = self._open_session(self.content)
        limit = f"the model opens with {PROVIDERS[self.provider]}"
        self._require(True, "ONNX Runtime", found=onnxruntime.__version__, limit=limit)
        return session

    def _open_session(self, content: bytes) -> onnxruntime.InferenceSession:
        """Open a session of `content` on the requested provider.

        The gate opens its own session, so that the checks do not depend on `toolkit.inference.session`.
        """
        provider = PROVIDERS[self.provider]
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise ToolkitError(f"this ONNX Runtime has no {provider}; it has {_first_few(available)}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors arrive as exceptions
        options.add_session_config_entry("session.load_model_format", "ONNX")  # never ONNX Runtime's own format
        with_options: list[Any] = [provider]
        if self.provider == "cpu":
            limit_memory(options)
        if self.provider == "cuda":
            with quiet():  # it prints the missing libraries; opening the session fails if one of them is needed
                onnxruntime.preload_dlls()
            with_options = [(provider, {"use_tf32": "0"})]  # TF32 has a 10-bit mantissa; float32 has 23 bits
        limit = f"the model opens with {provider}"
        try:
            session = onnxruntime.InferenceSession(content, options, providers=with_options)
        except Exception as error:  # ONNX Runtime's errors have no common base
            self._reject("ONNX Runtime", found=first_line(error), limit=limit)
        if session.get_providers()[0] != provider:
            raise ToolkitError(
                f"{provider} was requested, and ONNX Runtime fell back to {_first_few(session.get_providers())}; "
                "`cifar doctor` shows what is missing"
            )
        return session

    def _check_values(self, logits: Float32, probabilities: Float32) -> None:
        bad = int((~np.isfinite(logits) | ~np.isfinite(probabilities)).any(axis=1).sum())
        self._require(bad == 0, "finite outputs", found=f"{bad:,} images with NaN or infinity", limit="none")
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        worst = float(np.abs(powers / powers.sum(axis=1, keepdims=True) - probabilities).max())
        found, limit = f"{worst:.2g} from the softmax of the logits", f"at most {PROBABILITY_LIMIT:g}"
        self._require(worst <= PROBABILITY_LIMIT, "probabilities", found=found, limit=limit)

    def _compare_with_pytorch(self, logits: Float32, reference: Reference) -> None:
        """Compare logits and labels with PyTorch's: over the random images, then over the test images."""
        pytorch_logits = reference.logits
        if pytorch_logits is None:
            self._report_only("parity with PyTorch", "not checked (no checkpoint)", "needs the checkpoint")
            return
        differences = []
        for name, part in [("random images", slice(RANDOM_COUNT)), ("test images", slice(RANDOM_COUNT, None))]:
            differences.append(float(np.abs(logits[part] - pytorch_logits[part]).max()))
            self._check_logits(name, differences[-1])
            self._check_labels(name, logits[part], pytorch_logits[part])
        differing = int((logits.argmax(1) != pytorch_logits.argmax(1))[RANDOM_COUNT:].sum())
        self._record(
            max_logit_difference=max(differences),
            differing_labels=differing,
            reference_correct=int((pytorch_logits[RANDOM_COUNT:].argmax(1) == reference.labels).sum()),
        )

    def _check_logits(self, name: str, difference: float) -> None:
        check, found = f"logits, {name}", f"{difference:.2g} from PyTorch's"
        limit = self.tolerances.logit_difference
        if limit is None:
            self._report_only(check, found, "reported")
        else:
            self._require(difference <= limit, check, found=found, limit=f"at most {limit:g}")

    def _check_labels(self, name: str, logits: Float32, pytorch_logits: Float32) -> None:
        differ = logits.argmax(1) != pytorch_logits.argmax(1)
        check, found = f"labels, {name}", f"{int(differ.sum()):,} of {len(differ):,} differ"
        if self.tolerances.points_lost is not None:
            self._report_only(check, found, "reported")
            return
        ties = _find_near_ties(pytorch_logits, self.tolerances)
        limit = f"none, except {int(ties.sum()):,} near ties"
        self._require(not (differ & ~ties).any(), check, found=found, limit=limit)

    def _check_accuracy(self, logits: Float32, reference: Reference) -> None:
        """Compare the count of correct test images with PyTorch's, then with the required accuracy."""
        images, tolerances = len(reference.labels), self.tolerances
        matches = logits.argmax(1) == reference.labels
        correct, macro = int(matches.sum()), macro_accuracy(matches, reference.labels)
        pytorch_logits = logits if reference.logits is None else reference.logits[RANDOM_COUNT:]
        near_ties = int(_find_near_ties(pytorch_logits, tolerances).sum()) if tolerances.points_lost is None else 0
        self._record(test_correct=correct, test_accuracy=correct / images, near_ties=near_ties)
        if reference.logits is not None:
            lost, allowed = (self.figures.reference_correct or 0) - correct, self._allowed_extra_errors()
            points = tolerances.points_lost
            reason = ", the near ties" if points is None else f" ({float(points):g} points)"
            found = f"{correct:,} right, and {self.figures.reference_correct:,} by PyTorch"
            self._require(lost <= allowed, "accuracy lost", found=found, limit=f"at most {allowed:,} fewer{reason}")
        low, high = compute_wilson_interval(correct, images)
        self._record(test_accuracy_interval=(low, high), test_macro_accuracy=macro)
        self._report_only("accuracy, 95% interval", f"{low:.2%} to {high:.2%}", f"reported (Wilson, {images:,} images)")
        self._report_only("macro accuracy", f"{macro:.2%}", "reported (mean over classes)")
        required = self.figures.required_correct or 0
        limit = f"at least {required:,} ({self.figures.min_accuracy:g})"
        self._require(correct >= required, "accuracy", found=f"{correct:,} of {images:,} right", limit=limit)

    def _allowed_extra_errors(self) -> int:
        """Return how many more test images the model may misclassify than PyTorch."""
        if self.tolerances.points_lost is None:
            return self.figures.near_ties or 0
        return math.floor(self.tolerances.points_lost * (self.figures.test_images or 0) / 100)


def _find_near_ties(logits: Float32, tolerances: Tolerances) -> NDArray[np.bool_]:
    """Images whose two best logits are at most twice the limit apart. (N, K) -> bool (N,)."""
    best = np.partition(logits, -2, axis=1)[:, -2:]
    ties: NDArray[np.bool_] = best[:, 1] - best[:, 0] <= 2 * (tolerances.logit_difference or 0.0)
    return ties


def _first_few(items: Iterable[str]) -> str:
    """The first three, with the number of further ones."""
    items = list(items)
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
