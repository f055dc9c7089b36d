"""Start what `cifar export` and `cifar verify` ask for: find the checkpoint and its data, then run the gate."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.dataset import name_of_data
from toolkit.deploy.accuracy import choose_floor
from toolkit.deploy.export import OPSET, check_choices, export_onnx
from toolkit.deploy.gate import GateProvider, check_arguments
from toolkit.deploy.graph import InputFormat, Precision
from toolkit.deploy.quantize import Target
from toolkit.deploy.report import Report
from toolkit.deploy.verification import read_onnx_file, verify
from toolkit.errors import UsageError
from toolkit.files import require_writable
from toolkit.reporting import Note, ignore
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import RUNS, find_checkpoint
from toolkit.runs.location import find_training_data


@dataclass(frozen=True)
class ExportOptions:
    """The options of `cifar export`.

    Attributes:
        output: ONNX file to write, or a folder for `model.onnx`.
        run: by name or path; None for `checkpoint`, or without one for the newest finished run.
        checkpoint: a checkpoint file instead of a run.
        data: as `find_data` takes it; None for the data that the checkpoint records.
        skip_damaged: continue without pictures that cannot be read.
        runs: the folder of runs.
        min_accuracy, precision, target, input_format, provider: as `export_onnx` takes them.
        opset: as `export_onnx` takes it; None for `OPSET`.
    """

    output: Path = Path("model.onnx")
    run: str | None = None
    checkpoint: Path | None = None
    data: str | None = None
    skip_damaged: bool = False
    runs: Path = RUNS
    min_accuracy: float | None = None
    precision: Precision = "fp32"
    target: Target = "cpu"
    input_format: InputFormat = "uint8-nhwc"
    opset: int | None = None
    provider: GateProvider = "cpu"

    @property
    def file(self) -> Path:
        """The ONNX file to write."""
        is_folder = os.path.isdir(self.output) or str(self.output).endswith(("/", os.sep))
        return self.output / "model.onnx" if is_folder else self.output


@dataclass(frozen=True)
class VerifyOptions:
    """The options of `cifar verify`.

    Attributes:
        model: ONNX file.
        checkpoint: the checkpoint that it was exported from, for parity.
        data: as `find_data` takes it; None for the data that the model records.
        skip_damaged: continue without pictures that cannot be read.
        min_accuracy, provider: as `verify` takes them.
    """

    model: Path
    checkpoint: Path | None = None
    data: str | None = None
    skip_damaged: bool = False
    min_accuracy: float | None = None
    provider: GateProvider = "cpu"


def launch_export(options: ExportOptions, *, note: Note = ignore, **data_callbacks: Any) -> Report:
    """Export a checkpoint. All that can be checked without the data is checked before they are fetched.

    Args:
        options: see there.
        note: called with a few words at each stage.
        data_callbacks: `progress` and `on_pictures` of `find_data`.

    Raises:
        Rejected, UsageError, ToolkitError: as `find_checkpoint`, `find_training_data` and `export_onnx`.
    """
    if options.run is not None and options.checkpoint is not None:
        raise UsageError("give --run or --checkpoint, not both")
    require_writable(options.file)
    check_arguments(min_accuracy=options.min_accuracy, provider=options.provider)
    opset = OPSET if options.opset is None else options.opset
    check_choices(precision=options.precision, target=options.target, input_format=options.input_format, opset=opset)
    checkpoint = options.checkpoint or find_checkpoint(
        options.run, data=name_of_data(options.data), root=options.runs, note=note
    )
    note(f"Exporting {checkpoint}")
    trained = load_checkpoint(checkpoint)
    floor = choose_floor(options.min_accuracy, data=trained.data.get("name", ""), val_accuracy=trained.val_accuracy)
    source = find_training_data(
        options.data,
        recorded=trained.data,
        model=checkpoint,
        skip_damaged=options.skip_damaged,
        note=note,
        **data_callbacks,
    )
    return export_onnx(
        trained,
        options.file,
        data=source,
        min_accuracy=floor,
        precision=options.precision,
        target=options.target,
        input_format=options.input_format,
        opset=opset,
        provider=options.provider,
        note=note,
    )


def launch_verify(options: VerifyOptions, *, note: Note = ignore, **data_callbacks: Any) -> Report:
    """Verify an ONNX file. All that can be checked without the data is checked before they are fetched.

    Args:
        options: see there.
        note: called with a few words at each stage.
        data_callbacks: `progress` and `on_pictures` of `find_data`.

    Raises:
        Rejected, UsageError, ToolkitError: as `read_onnx_file`, `find_training_data` and `verify`.
    """
    check_arguments(min_accuracy=options.min_accuracy, provider=options.provider)
    file = read_onnx_file(options.model)
    source = find_training_data(
        options.data,
        recorded=file.read_data_identity(),
        model=options.checkpoint or options.model,
        skip_damaged=options.skip_damaged,
        note=note,
        **data_callbacks,
    )
    return verify(
        file,
        data=source,
        checkpoint=options.checkpoint,
        min_accuracy=options.min_accuracy,
        provider=options.provider,
        note=note,
    )
