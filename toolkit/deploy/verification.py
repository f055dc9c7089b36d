"""Verify an existing ONNX file: run the gate on it, and compare it with the graph of its checkpoint."""

from pathlib import Path

from onnx import ModelProto

from toolkit.data.dataset import DataSource, FindData, require_same_data
from toolkit.data.images import Images
from toolkit.deploy import graph, quantize
from toolkit.deploy.accuracy import choose_min_accuracy
from toolkit.deploy.export import build_onnx_model
from toolkit.deploy.gate import Gate, GateProvider, check_arguments
from toolkit.deploy.metadata import read_data_identity
from toolkit.deploy.reference import prepare_reference
from toolkit.deploy.report import Report
from toolkit.inference.model_file import read_model_bytes
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint


def verify(
    model: Path,
    *,
    data: DataSource | FindData,
    checkpoint: Path | None = None,
    min_accuracy: float | None = None,
    provider: GateProvider = "cpu",
    note: Note = ignore,
) -> Report:
    """Run the gate on an existing file.

    Args:
        model: the ONNX file.
        data: the data that the model was trained on, or a function that finds them by the identity in the file; the
            gate reads the whole test set.
        checkpoint: the checkpoint that the model was exported from; without it, neither the graph nor parity with
            PyTorch is checked.
        min_accuracy: required accuracy on the test set, in (0, 1]; by default that of the data set
            (`DEFAULT_MIN_ACCURACY`).
        provider: the provider on which ONNX Runtime must run the model.
        note: called with a few words at each stage.

    Raises:
        Rejected: a check failed; its `report` ends with that check.
        UsageError: `min_accuracy` or `provider` is invalid, or the data set is not in `DEFAULT_MIN_ACCURACY`.
        ToolkitError: no such file, the checkpoint cannot be read or was trained on other data, or ONNX Runtime does
            not run on `provider` here.
    """
    check_arguments(min_accuracy=min_accuracy, provider=provider)
    content = read_model_bytes(model)
    trained = load_checkpoint(checkpoint) if checkpoint else None
    source = data if isinstance(data, DataSource) else data(read_data_identity(content))
    min_accuracy = choose_min_accuracy(
        min_accuracy, data=source.name, val_accuracy=trained.val_accuracy if trained else None
    )
    gate = Gate(content, min_accuracy=min_accuracy, provider=provider)
    gate.check_file(source.class_names)
    reference = prepare_reference(source, trained, note=note)
    if trained is None and (recorded := gate.read_data_identity()):
        require_same_data(recorded, reference.data, what=str(model))
    gate.check_graph(rebuild(trained, gate, reference.train, note=note) if trained else None)
    gate.check_outputs(reference, note=note)
    gate.check_metadata(reference)
    return gate.report(passed=True)


def rebuild(checkpoint: Checkpoint, gate: Gate, train: Images, *, note: Note) -> ModelProto:
    """Build the graph of the checkpoint in the input format, opset and precision of the verified model.

    Args:
        checkpoint: the checkpoint that the model was exported from.
        gate: after `check_file`.
        train: the training images, from which int8 is calibrated as `cifar export` does.
        note: called with a few words at each stage.

    Raises:
        ToolkitError: the exporter failed.
    """
    found = gate.model
    assert found is not None
    model, _ = build_onnx_model(
        checkpoint,
        train=train,
        precision=graph.detect_precision(found),
        target=quantize.detect_target(found),
        input_format=graph.detect_input_format(found) or "uint8-nhwc",
        opset=graph.read_opset(found),
        note=note,
    )
    return model
