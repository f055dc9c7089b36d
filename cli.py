"""The command line: options in, one call, one result printed. Heavy imports are inside the commands."""

import functools
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from toolkit import command_line, options
from toolkit.bench.commands import bench
from toolkit.command_line import add_recipe_flags, command, note, print_error, print_result, print_version, run_app
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import as_text, escape, require_writable
from toolkit.recipes.recipe import recipe_from_flags

app = typer.Typer(
    name="cifar",
    help="Train ResNet-20 on CIFAR-10, export it to verified ONNX, and classify image files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": shutil.get_terminal_size().columns},
)
app.add_typer(bench, name="bench")


@app.callback()
def cifar(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Options of `cifar` itself, before any command."""


@command(app)
@add_recipe_flags
def train(
    recipe: options.RecipeName = None,
    data: options.Data = None,
    skip_damaged: options.SkipDamaged = False,
    init: options.Init = None,
    teacher: options.Teacher = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder. [default: from the recipe]")] = None,
    runs: options.Runs = Path("runs"),
    resume: Annotated[str | None, typer.Option(help="Run to resume from its last completed epoch.")] = None,
    seeds: options.Seeds = None,
    on: options.On = None,
    gpu_share: Annotated[float, typer.Option(help="Share of a GPU that each seed gets, with --on.")] = 0.25,
    device: options.Device = "auto",
    step: options.Step = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    json_output: options.Json = False,
    **recipe_values: Any,
) -> None:
    """Train a network by a recipe.

    Every key of the recipe has a flag, which replaces the value in the recipe.
    """
    from toolkit.cluster.training import train_on_engine
    from toolkit.display import TrainingDisplay, data_callbacks, jobs_bar, run_lines, seeds_lines
    from toolkit.training.launch import LaunchOptions, launch

    launch_options = LaunchOptions(
        recipe=recipe,
        changes=recipe_from_flags(recipe_values),
        data=data,
        skip_damaged=skip_damaged,
        init=init,
        teacher=teacher,
        name=name,
        runs=runs,
        resume=resume,
        seeds=seeds,
        device=device,
        step=step,
        tensorboard=tensorboard,
        on=on,
        gpu_share=gpu_share,
    )
    with data_callbacks(note) as callbacks, jobs_bar("epochs") as progress:
        run_on_engine = functools.partial(train_on_engine, progress=progress, note=note)
        result = launch(launch_options, display=TrainingDisplay, train_on_engine=run_on_engine, **callbacks)
    where = {"folder" if result.several else "run": as_text(result.path)}
    render = seeds_lines if result.several else run_lines
    print_result(result.summary | where, lambda: render(result.path, result.summary), as_json=json_output)


@command(app)
def evaluate(
    target: options.Target = None,
    data: options.Data = None,
    skip_damaged: options.SkipDamaged = False,
    runs: options.Runs = Path("runs"),
    provider: options.Provider = "auto",
    device: options.Device = "auto",
    plot: Annotated[Path | None, typer.Option(help="Write the confusion matrix as a PNG file.")] = None,
    json_output: options.Json = False,
) -> None:
    """Measure a model on the test set.

    Prints overall and per-class accuracy, confusion matrix and calibration error.
    """
    from toolkit.display import data_callbacks, metrics_lines, seeds_metrics_lines
    from toolkit.evaluation.evaluate import SeedsMetrics
    from toolkit.evaluation.target import evaluate_target

    with data_callbacks(note) as callbacks:
        result = evaluate_target(
            target,
            data=data,
            skip_damaged=skip_damaged,
            runs=runs,
            provider=provider,
            device=device,
            plot=plot,
            **callbacks,
        )
    if isinstance(result, SeedsMetrics):
        print_result(result.as_dict(), lambda: seeds_metrics_lines(result), as_json=json_output)
        return
    print_result(result.as_dict(), lambda: metrics_lines(result.metrics), as_json=json_output)
    if plot is not None:
        result.plot(plot)
        note(f"Confusion matrix: {plot}")


@command(app)
def export(
    output: options.Output = Path("model.onnx"),
    run: Annotated[str | None, typer.Option(help="Run, by name or path. [default: the newest finished one]")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file instead of a run.")] = None,
    data: options.Data = None,
    skip_damaged: options.SkipDamaged = False,
    runs: options.Runs = Path("runs"),
    min_accuracy: options.MinAccuracy = None,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="Number format of the model.")] = "fp32",
    target: Annotated[Literal["cpu", "gpu"], typer.Option(help="Hardware that int8 is quantized for.")] = "cpu",
    input_format: options.InputFormat = "uint8-nhwc",
    opset: Annotated[int | None, typer.Option(help="ONNX operator set. [default: the tested one]")] = None,
    provider: options.GateProvider = "cpu",
    json_output: options.Json = False,
) -> None:
    """Export a checkpoint to ONNX and verify it.

    The file is written only if it passes the gate, the checks that a model file must pass; otherwise exit code 3.
    """
    from toolkit.data.dataset import find_data_name
    from toolkit.deploy import export_onnx
    from toolkit.runs.folder import find_checkpoint

    if run is not None and checkpoint is not None:
        raise UsageError("give --run or --checkpoint, not both")
    if os.path.isdir(output) or str(output).endswith(("/", os.sep)):
        output = output / "model.onnx"
    require_writable(output)
    path = checkpoint or find_checkpoint(run, data=find_data_name(data), root=runs, note=note)
    note(f"Exporting {path}")
    export_model = functools.partial(
        export_onnx,
        path,
        output,
        min_accuracy=min_accuracy,
        precision=precision,
        target=target,
        input_format=input_format,
        opset=opset,
        provider=provider,
    )
    run_gate(export_model, output, trained=path, data=data, skip_damaged=skip_damaged, as_json=json_output)
    note(f"Verified and written: {output}")


@command(app)
def verify(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint it was exported from, for parity.")] = None,
    data: options.Data = None,
    skip_damaged: options.SkipDamaged = False,
    min_accuracy: options.MinAccuracy = None,
    provider: options.GateProvider = "cpu",
    json_output: options.Json = False,
) -> None:
    """Run the gate, the checks that a model file must pass, on an ONNX file; exit code 3 if it fails."""
    from toolkit.deploy import verify as verify_model

    verify_file = functools.partial(
        verify_model, model, checkpoint=checkpoint, min_accuracy=min_accuracy, provider=provider
    )
    trained = checkpoint or model
    run_gate(verify_file, model, trained=trained, data=data, skip_damaged=skip_damaged, as_json=json_output)


def run_gate(
    gate: Callable[..., Any], path: Path, *, trained: Path, data: str | None, skip_damaged: bool, as_json: bool
) -> None:
    """Run `gate` on `path` with the training data of `trained`; print the report, even if the model is rejected."""
    from toolkit.deploy import Rejected
    from toolkit.display import data_callbacks, report_lines
    from toolkit.runs.location import find_training_data

    rejection = None
    try:
        with data_callbacks(note) as callbacks:
            find = functools.partial(
                find_training_data, data=data, model=trained, skip_damaged=skip_damaged, **callbacks
            )
            report = gate(data=find, note=note)
    except Rejected as error:
        report, rejection = error.report, error
    print_result({"file": as_text(path)} | report.as_dict(), lambda: report_lines(report), as_json=as_json)
    if rejection is not None:
        raise rejection


@command(app, enables_gc=True)
def predict(
    paths: options.PicturePaths,
    model: options.Model = None,
    top: Annotated[int, typer.Option(help="Number of classes to print.", min=1)] = 1,
    format: options.Format = None,
    plot: options.PredictionsPlot = None,
    batch_size: options.BatchSize = 64,
    provider: options.Provider = "auto",
    out: options.Out = None,
    on: options.On = None,
) -> None:
    """Classify picture files.

    Reports each unreadable file in one line on stderr, and then ends with exit code 1.
    """
    import warnings

    from toolkit.inference import Classifier, Failure
    from toolkit.inference.output_format import format_predictions

    if on is not None and out is None:
        raise UsageError("--on needs --out FOLDER, the folder for the part files")
    if out is not None and (plot is not None or provider not in ("auto", "cpu")):
        raise UsageError("--out allows neither --plot nor a --provider other than cpu: leave them out")
    if out is not None:
        command_line.enable_gc()
        predict_parts(paths, out, on=on or "local", model=model, format=format or "csv", top=top, batch_size=batch_size)
        return
    if plot is not None:
        from toolkit.evaluation.plots import require_plottable

        require_plottable(paths, plot)
    warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF and large pictures: failures are reported per file
    classifier = Classifier(model, provider=provider)
    session = classifier.session
    command_line.enable_gc()
    note(f"Model: {escape(session.path)}, {session.note or f'running on {session.provider}'}")
    failures, drawn = 0, []

    def predictions() -> Any:
        nonlocal failures
        for result in classifier.stream(paths, batch_size=batch_size, top=top, processes=True):
            if isinstance(result, Failure):
                failures += 1
                print_error(str(result.error))
            else:
                drawn.extend([result] if plot else [])
                yield result

    for line in format_predictions(predictions(), format or "table", top=top):
        typer.echo(line)
    if plot is None:
        command_line.skip_cleanup()  # NumPy, Pillow and ONNX Runtime need none; matplotlib does
    elif drawn:
        from toolkit.evaluation.plots import plot_predictions

        plot_predictions(drawn, plot)
        note(f"Picture: {plot}")
    if failures:
        raise typer.Exit(1)


def predict_parts(paths: list[str], out: Path, *, on: str, **options: Any) -> None:
    """Predict into part files on the engine that `on` names; print the counts and the first errors."""
    from toolkit.cluster.engines import open_prediction_engine
    from toolkit.cluster.prediction import predict_to_folder
    from toolkit.display import jobs_bar, parts_lines

    with jobs_bar("pictures") as progress:
        result = predict_to_folder(open_prediction_engine(on), paths, out, progress=progress, **options)
    for error in itertools.islice(result.failures(), 20):
        print_error(error)
    typer.echo(parts_lines(result))
    if result.failure_count:
        raise typer.Exit(1)


@command(app, handles_signals=True)
def serve(
    model: options.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.", min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(help="Processes; they share the cores.", min=1)] = 1,
    provider: options.Provider = "auto",
) -> None:
    """Serve the model over HTTP. On SIGTERM or Ctrl-C, answer the accepted requests, then stop."""
    from toolkit.serving import serve as serve_model

    serve_model(model, provider=provider, host=host, port=port, workers=workers, announce=note)


@command(app)
def page(
    output: Annotated[Path, typer.Argument(help="HTML file to write.")],
    model: options.Model = None,
    json_output: options.Json = False,
) -> None:
    """Write the model as one HTML file that classifies pictures in any browser, offline."""
    from toolkit.serving.page import write_page

    written = write_page(output, model)
    values = {"path": as_text(written.path), "bytes": written.size, "model_sha256": written.model_sha256}
    text = f"{escape(written.path)}: {written.size / 1e6:.1f} MB; open it in a browser"
    print_result(values, lambda: text, as_json=json_output)


@command(app)
def models(json_output: options.Json = False) -> None:
    """List the networks and their cost."""
    from models.cost import measure_all_costs
    from toolkit.display import models_lines

    costs = measure_all_costs()
    print_result([cost.as_dict() for cost in costs], lambda: models_lines(costs), as_json=json_output)


@command(app)
def data(
    folder: Annotated[str | None, typer.Argument(help="The same as --data.", metavar="[FOLDER]")] = None,
    data: options.Data = None,
    skip_damaged: options.SkipDamaged = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download CIFAR-10 or CIFAR-100 if missing.")] = False,
    sheet: options.ContactSheet = None,
    samples: Annotated[Path | None, typer.Option(help="Write sample pictures into this folder.")] = None,
    per_class: Annotated[int, typer.Option(help="Sample pictures of each class.", min=1)] = 1,
    json_output: options.Json = False,
) -> None:
    """Check the data set and count its pictures; fetch it; draw a contact sheet; write sample pictures."""
    from toolkit.data.overview import inspect_data
    from toolkit.display import data_callbacks, data_lines

    if folder is not None and data is not None:
        raise UsageError("give FOLDER or --data, not both")
    with data_callbacks(note) as callbacks:
        overview = inspect_data(
            folder or data,
            skip_damaged=skip_damaged,
            fetch=fetch,
            sheet=sheet,
            samples=samples,
            per_class=per_class,
            **callbacks,
        )
    print_result(overview.as_dict(), lambda: data_lines(overview), as_json=json_output)
    overview.require_complete()


@command(app)
def doctor(data: options.Data = None, json_output: options.Json = False) -> None:
    """Check this machine: libraries, providers, data."""
    from toolkit.display import doctor_lines
    from toolkit.doctor import examine

    findings = examine(data)
    print_result([vars(finding) for finding in findings], lambda: doctor_lines(findings), as_json=json_output)
    if any(finding.ok is False for finding in findings):
        raise ToolkitError("a required part does not work; the remedies are listed above")


@command(app)
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("cifar-demo"),
) -> None:
    """Run the whole pipeline on synthetic pictures, in about a minute."""
    from toolkit.demo import run_demo

    if exit_code := run_demo(folder, run=functools.partial(app, standalone_mode=False), echo=typer.echo):
        raise typer.Exit(exit_code)


def main() -> None:
    """Entry point of the `cifar` command."""
    run_app(app)


if __name__ == "__main__":
    main()
