"""The commands `cifar bench ...`: options in, one benchmark, its table printed."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.command_line import command, note, print_result
from toolkit.files import require_writable
from toolkit.options import BatchSizes, Data, Device, Json, Model, Quick, SkipDamaged

bench = typer.Typer(
    help="Time training, prediction and deployment on this machine.", no_args_is_help=True, rich_markup_mode=None
)


@command(bench, name="train")
def bench_train(
    device: Device = "auto", batch_size: BatchSizes = None, quick: Quick = False, json_output: Json = False
) -> None:
    """Compare training steps with a conventional loop, on random images."""
    from toolkit.bench.train import BATCH_SIZES
    from toolkit.bench.train import bench_train as measure
    from toolkit.display import benchmark_lines

    result = measure(device, batch_sizes=batch_size or BATCH_SIZES, quick=quick, progress=note)
    print_result(result.as_dict(), lambda: benchmark_lines(result), as_json=json_output)


@command(bench, name="predict")
def bench_predict(
    model: Model = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures in the folder. [default: 10000]")] = None,
    quick: Quick = False,
    json_output: Json = False,
) -> None:
    """Compare `cifar predict` with a bare script and with ONNX Runtime."""
    from toolkit.bench.predict import bench_predict as measure
    from toolkit.display import benchmark_lines

    result = measure(model, pictures=pictures, quick=quick, progress=note)
    print_result(result.as_dict(), lambda: benchmark_lines(result), as_json=json_output)


@command(bench, name="deploy")
def bench_deploy(
    models: Annotated[list[Path] | None, typer.Argument(help="ONNX files. [default: the shipped model]")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="For PyTorch. [default: the shipped checkpoint]")] = None,
    data: Data = None,
    skip_damaged: SkipDamaged = False,
    batch_size: BatchSizes = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the result as a PNG file.")] = None,
    quick: Quick = False,
    json_output: Json = False,
) -> None:
    """Compare ONNX Runtime with PyTorch: speed, size, memory, accuracy."""
    from toolkit.bench.deploy import BATCH_SIZES
    from toolkit.bench.deploy import bench_deploy as measure
    from toolkit.display import benchmark_lines
    from toolkit.evaluation.plots import plot_deployment

    if plot is not None:
        require_writable(plot, suffix=".png")
    result = measure(
        models or [],
        checkpoint=checkpoint,
        data=data,
        skip_damaged=skip_damaged,
        batch_sizes=batch_size or BATCH_SIZES,
        quick=quick,
        progress=note,
    )
    print_result(result.as_dict(), lambda: benchmark_lines(result), as_json=json_output)
    if plot is not None:
        plot_deployment(result, plot)
        note(f"Picture: {plot}")
