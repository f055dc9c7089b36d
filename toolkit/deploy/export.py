"""Export a checkpoint to one ONNX file, which is moved to its path only after it has passed the gate."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import torch
from onnx import ModelProto
from torch import Tensor, nn

from toolkit.data.channels import CIFAR10_STATISTICS, ChannelStatistics
from toolkit.data.dataset import DataSource, FindData
from toolkit.data.images import Images
from toolkit.deploy import graph, quantize
from toolkit.deploy.accuracy import choose_min_accuracy
from toolkit.deploy.gate import Gate, GateProvider, check_arguments
from toolkit.deploy.graph import InputFormat, Precision
from toolkit.deploy.metadata import build_metadata, write_metadata
from toolkit.deploy.picture_input import prepend_picture_input
from toolkit.deploy.quantize import Target
from toolkit.deploy.quiet import quiet
from toolkit.deploy.reference import prepare_reference
from toolkit.deploy.report import Report
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import replacing, require_writable
from toolkit.inference.model_file import read_model_bytes
from toolkit.inference.model_graph import OPSETS
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint

OPSET = 18  # the exporter's own opset: needs no conversion, and all current runtimes read it


def export_onnx(
    checkpoint: Path | Checkpoint,
    output: Path,
    *,
    data: DataSource | FindData,
    min_accuracy: float | None = None,
    precision: Precision = "fp32",
    target: Target = "cpu",
    input_format: InputFormat = "uint8-nhwc",
    opset: int | None = None,
    provider: GateProvider = "cpu",
    note: Note = ignore,
) -> Report:
    """Export `checkpoint` to `output`, through the gate.

    Args:
        checkpoint: a `.pt` file of a run, or a checkpoint from `load_checkpoint`.
        output: the ONNX file; an existing file is replaced if the model passes, and untouched if not.
        data: the data set that the checkpoint was trained on, or a function that finds it, called after all other
            arguments were checked.
        min_accuracy: required accuracy on the test set, in (0, 1]; by default that of the data set
            (`DEFAULT_MIN_ACCURACY`).
        precision: number format of the network.
        target: hardware that an int8 model is quantized for.
        input_format: "uint8-nhwc", uint8 (batch, 32, 32, 3), "float-nchw", float32 (batch, 3, 32, 32) in [0, 1], or
            "picture", uint8 (height, width, 3), one picture of any size.
        opset: version of the ONNX operators; None for `OPSET`.
        provider: the provider on which the gate runs the model.
        note: called with a short text at each stage.

    Returns:
        The gate's report on the file at `output`.

    Raises:
        Rejected: the model did not pass the gate.
        UsageError: an argument is invalid, or the data set is not in `DEFAULT_MIN_ACCURACY`.
        ToolkitError: the checkpoint cannot be read or was trained on other data, or the file cannot be written.
    """
    check_arguments(min_accuracy=min_accuracy, provider=provider)
    opset = OPSET if opset is None else opset
    _check_choices(precision=precision, target=target, input_format=input_format, opset=opset)
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name the file, such as {output / 'model.onnx'}")
    require_writable(output)
    trained = load_checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    name = data.name if isinstance(data, DataSource) else trained.data.get("name", "")
    min_accuracy = choose_min_accuracy(min_accuracy, data=name, val_accuracy=trained.val_accuracy)
    source = data if isinstance(data, DataSource) else data(trained.data)
    reference = prepare_reference(source, trained, note=note)
    model, calibration = build_onnx_model(
        trained,
        train=reference.train,
        precision=precision,
        target=target,
        input_format=input_format,
        opset=opset,
        note=note,
    )
    gate = Gate(_serialize(model), min_accuracy=min_accuracy, provider=provider)
    gate.check_file(source.class_names)
    gate.check_outputs(reference, note=note)
    write_metadata(model, build_metadata(gate.figures, reference, calibration=calibration))
    with replacing(output) as temporary:
        temporary.write_bytes(_serialize(model))
        final = _check_written(gate, read_model_bytes(temporary), class_names=source.class_names)
        final.check_metadata(reference)
        return final.report(passed=True)


def _check_written(gate: Gate, content: bytes, *, class_names: tuple[str, ...]) -> Gate:
    """Check that a written file is the checked model plus metadata; return a gate with the figures of that model.

    Raises:
        Rejected: the file does not pass the checks of its contents and interface.
        ToolkitError: the graph in the file differs from the checked one.
    """
    final = Gate(content, min_accuracy=gate.figures.min_accuracy, provider=gate.provider)
    final.check_file(class_names)
    assert final.model is not None
    without_metadata = ModelProto.FromString(final.model.SerializeToString())
    del without_metadata.metadata_props[:]
    if _serialize(without_metadata) != gate.content:
        raise ToolkitError(
            "the file that was read back differs from the checked model: the disk may be faulty; export to another one"
        )
    own = {name: getattr(final.figures, name) for name in ("bytes", "sha256")}
    final.figures = dataclasses.replace(gate.figures, **own)
    final.checks = list(gate.checks)
    return final


def _serialize(model: ModelProto) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def build_onnx_model(
    checkpoint: Checkpoint,
    *,
    train: Images,
    precision: Precision,
    target: Target,
    input_format: InputFormat,
    opset: int,
    note: Note,
) -> tuple[ModelProto, dict[str, Any] | None]:
    """Build the ONNX model of a checkpoint in any precision and input format, without metadata.

    Args:
        checkpoint: the network, and the channel statistics of its images.
        train: the training images, from which int8 is calibrated.
        precision, target, input_format, opset, note: see `export_onnx`.

    Returns:
        The model, and the calibration settings of an int8 one.
    """
    takes_picture = input_format == "picture"
    network_input = "uint8-nhwc" if takes_picture else input_format
    note("building the ONNX graph")
    network, statistics = checkpoint.network(), checkpoint.statistics
    model = export_graph(network, statistics=statistics, input_format=network_input, opset=opset)
    calibration: dict[str, Any] | None = None
    if precision == "fp16":
        model = quantize.to_fp16(model)
    elif precision == "int8":
        images = quantize.choose_calibration_images(train)
        note(f"calibrating int8 on {len(images):,} training images")
        model, calibration = quantize.to_int8(model, images, target=target)
    return prepend_picture_input(model) if takes_picture else model, calibration


def export_graph(
    network: nn.Module,
    *,
    statistics: ChannelStatistics = CIFAR10_STATISTICS,
    input_format: InputFormat = "uint8-nhwc",
    opset: int = OPSET,
) -> ModelProto:
    """Export `network` with its preprocessing as a float32 graph, without metadata.

    Args:
        network: float32 (N, 3, 32, 32), normalized, to logits (N, K).
        statistics: channel means and standard deviations by which the graph normalizes.
        input_format: "uint8-nhwc" or "float-nchw", see `export_onnx`.
        opset: one of `OPSETS`.

    Raises:
        ToolkitError: the exporter failed, or wrote another opset.
    """
    shape = graph.INPUTS[input_format].shape
    # Two images, because the exporter treats a batch of one as a constant.
    dtype = torch.uint8 if input_format == "uint8-nhwc" else torch.float32
    example = torch.zeros(2, *map(int, shape[1:]), dtype=dtype)
    with quiet() as output:
        try:
            program = torch.onnx.export(
                DeployedNetwork(network, statistics=statistics, input_format=input_format).eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[graph.IMAGES],
                output_names=[graph.LOGITS, graph.PROBABILITIES],
                dynamic_shapes={graph.IMAGES: {0: torch.export.Dim(graph.BATCH)}},
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # each stage of the exporter has its own exception types
            raise ToolkitError(f"torch.onnx could not export the network: {error} {output.getvalue()}") from error
    assert program is not None
    model = program.model_proto
    if graph.read_opset(model) != opset:
        raise ToolkitError(f"torch.onnx wrote opset {graph.read_opset(model)} instead of {opset}; use --opset {OPSET}")
    return graph.strip(model)


class DeployedNetwork(nn.Module):
    """Normalization, the network and softmax: images to logits and probabilities, float32 (N, K) each."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, *, statistics: ChannelStatistics, input_format: InputFormat) -> None:
        super().__init__()
        self.network = network
        self.from_uint8 = input_format == "uint8-nhwc"
        # (x / 255 - mean) / std as one multiplication and one addition
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (statistics.mean, statistics.std))
        largest = 255 if self.from_uint8 else 1
        self.register_buffer("scale", (1 / (largest * std)).float().view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.from_uint8:
            images = images.permute(0, 3, 1, 2).float()  # (N, 32, 32, 3) -> (N, 3, 32, 32); transposed as uint8
        logits = self.network(images * self.scale + self.shift)
        return logits, torch.softmax(logits, dim=1)


def _check_choices(*, precision: str, target: str, input_format: str, opset: int) -> None:
    for name, value, valid in [
        ("precision", precision, get_args(Precision)),
        ("target", target, get_args(Target)),
        ("input format", input_format, get_args(InputFormat)),
        ("opset", opset, tuple(OPSETS)),
    ]:
        if value not in valid:
            raise UsageError(f"unknown {name} {value!r}: valid are {', '.join(map(str, valid))}")
