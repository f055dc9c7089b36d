"""Export: a checkpoint becomes one ONNX file, which appears where it was asked for once the gate let it pass."""

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from onnx import ModelProto
from torch import Tensor, nn

from toolkit.data.cifar import MEAN, STD
from toolkit.data.dataset import DataSource
from toolkit.deploy import graph, quantize
from toolkit.deploy.gate import MIN_ACCURACY, check_request, examine
from toolkit.deploy.metadata import claims_for, write_claims
from toolkit.deploy.quiet import quiet
from toolkit.deploy.reference import prepare_exam
from toolkit.deploy.report import Report
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import replacing

OPSET = 18  # the opset in which torch.onnx writes: no conversion that could go wrong, and every runtime reads it
OPSETS = range(18, 22)  # those that were tried, with ONNX Runtime 1.23 and later


def export_onnx(
    checkpoint: Path,
    output: Path,
    *,
    data: DataSource,
    min_accuracy: float = MIN_ACCURACY,
    precision: str = "fp32",
    target: str = "cpu",
    input: str = "uint8-nhwc",
    opset: int = OPSET,
    provider: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Export `checkpoint` to `output`, through the gate.

    Args:
        checkpoint: a `.pt` file of a run.
        output: the ONNX file; what is there is replaced when the model passes, and left as it is when it does not.
        data: the data that the checkpoint was trained on.
        min_accuracy: least accuracy on the test set, in (0, 1].
        precision: "fp32", "fp16" or "int8".
        target: "cpu" or "gpu": what an int8 model is made for.
        input: "uint8-nhwc", uint8 (batch, 32, 32, 3), or "float-nchw", float32 (batch, 3, 32, 32) in [0, 1].
        opset: version of the ONNX operators.
        provider: "cpu" or "cuda": what the gate runs the model on.
        progress: told in a few words what is being done.

    Returns:
        The gate's report on the bytes that now stand at `output`.

    Raises:
        Rejected: the model did not pass the gate.
        UsageError: an argument is not possible.
        ToolkitError: the checkpoint cannot be read or was trained on other data, or the file cannot be written.
    """
    tell = progress or _silent
    check_request(min_accuracy=min_accuracy, provider=provider)
    _check_choices(precision=precision, target=target, input=input, opset=opset)
    _check_place(output)
    exam = prepare_exam(data, checkpoint, progress=tell)
    assert exam.reference is not None
    tell("building the ONNX graph")
    model = build_graph(exam.reference.checkpoint.network(), input=input, opset=opset)
    calibration: dict[str, Any] | None = None
    if precision == "fp16":
        model = quantize.to_fp16(model)
    elif precision == "int8":
        images = quantize.calibration_images(data.train())
        tell(f"calibrating int8 on {len(images):,} training images")
        model, calibration = quantize.to_int8(model, images, target=target)
    judged = partial(examine, exam=exam, min_accuracy=min_accuracy, provider=provider, progress=tell)
    first = judged(model.SerializeToString(deterministic=True), with_metadata=False)  # for the figures
    write_claims(model, claims_for(first.figures, exam, calibration=calibration))
    with replacing(output) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        return judged(graph.read_model(temporary), with_metadata=True)  # the very bytes that will stand there


def build_graph(network: nn.Module, *, input: str = "uint8-nhwc", opset: int = OPSET) -> ModelProto:
    """The float32 graph of `network` with its preprocessing, without metadata.

    Args:
        network: float32 (N, 3, 32, 32), normalised, to logits (N, 10); it is left as it is.
        input: one of `graph.INPUTS`.
        opset: one of `OPSETS`.

    Raises:
        ToolkitError: the exporter failed, or left the opset that was asked for.
    """
    _, shape = graph.INPUTS[input]
    # Two images, because the exporter takes a batch of one for a constant.
    example = torch.zeros(2, *map(int, shape[1:]), dtype=torch.uint8 if input == "uint8-nhwc" else torch.float32)
    with quiet() as said:
        try:
            program = torch.onnx.export(
                Deployed(network, input=input).eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[graph.IMAGES],
                output_names=[graph.LOGITS, graph.PROBABILITIES],
                dynamic_shapes={graph.IMAGES: {0: torch.export.Dim(graph.BATCH)}},
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's stages each raise errors of their own kinds
            raise ToolkitError(f"torch.onnx could not export the network: {error} {said.getvalue()}") from error
    assert program is not None
    model = program.model_proto
    if graph.opset_of(model) != opset:
        raise ToolkitError(f"torch.onnx wrote opset {graph.opset_of(model)} instead of {opset}; use --opset {OPSET}")
    return graph.lean(model)


class Deployed(nn.Module):
    """The network with what stands before and after it. Images to logits and probabilities, float32 (N, 10) each."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, *, input: str) -> None:
        super().__init__()
        self.network = _with_plain_pooling(network)
        self.from_uint8 = input == "uint8-nhwc"
        # (x / 255 - mean) / std as one multiplication and one addition
        mean, std = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
        largest = 255 if self.from_uint8 else 1
        self.register_buffer("scale", (1 / (largest * std)).float().view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.from_uint8:
            images = images.permute(0, 3, 1, 2).float()  # (N, 32, 32, 3) -> (N, 3, 32, 32); transposed while small
        logits = self.network(images * self.scale + self.shift)
        return logits, torch.softmax(logits, dim=1)


class _MeanOverPlane(nn.Module):
    """Global average pooling, (N, C, H, W) -> (N, C, 1, 1), as one AveragePool.

    The exporter writes `AdaptiveAvgPool2d` as a mean and a strided view (Range, Gather, ...), which no runtime fuses
    and no quantizer touches.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel_size=(x.shape[2], x.shape[3]))


def _with_plain_pooling(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, _MeanOverPlane())
    return network


def _check_choices(*, precision: str, target: str, input: str, opset: int) -> None:
    for what, value, valid in [
        ("precision", precision, graph.PRECISIONS),
        ("target", target, tuple(quantize.ACTIVATION_TYPES)),
        ("input", input, tuple(graph.INPUTS)),
        ("opset", opset, tuple(OPSETS)),
    ]:
        if value not in valid:
            raise UsageError(f"unknown {what} {value!r}: valid are {', '.join(map(str, valid))}")


def _check_place(output: Path) -> None:
    """Refuse at once what would fail at the end, after all the work."""
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name the file, such as {output / 'model.onnx'}")
    if output.exists() and not output.is_file():
        raise ToolkitError(f"cannot write {output}: it exists and is no ordinary file")
    if output.parent.is_dir() and not os.access(output.parent, os.W_OK):
        raise ToolkitError(f"cannot write {output}: the folder {output.parent} cannot be written to")


def _silent(message: str) -> None:
    pass
