"""The command line: options in, one call, one result printed. Heavy imports are inside the commands."""

import functools
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from toolkit import command_line
from toolkit.bench.commands import bench
from toolkit.command_line import (
    Data,
    Device,
    GateProvider,
    Json,
    MinAccuracy,
    On,
    Provider,
    Runs,
    SkipDamaged,
    note,
    print_error,
    print_result,
    print_version,
    recipe_flags,
    run_app,
)
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import as_text, display, require_writable
from toolkit.recipes.recipe import preset_names, recipe_from_flags

app = typer.Typer(
    name="cifar",
    help="Train ResNet-20 on CIFAR-10, export it to ONNX with proof, and predict image files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": shutil.get_terminal_size().columns},
)
app.add_typer(bench, name="bench")

command = functools.partial(command_line.command, group=app)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Options of `cifar` itself, before any command."""


@command
@recipe_flags
def train(
    recipe: Annotated[
        str | None,
        typer.Option(help=f"File, or preset: {', '.join(preset_names())}. [default: reference]"),
    ] = None,
    data: Data = None,
    skip_damaged: SkipDamaged = False,
    init: Annotated[
        str | None,
        typer.Option(help="Run or checkpoint to start from, or `shipped`. Without --recipe: preset finetune."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Run or checkpoint to distil from; needs --distillation-weight.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder. [default: from the recipe]")] = None,
    runs: Runs = Path("runs"),
    resume: Annotated[str | None, typer.Option(help="Run to resume from its last completed epoch.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train seeds 0 to N-1; repeat the command to resume.", min=1, metavar="N")
    ] = None,
    on: On = None,
    gpu_share: Annotated[float, typer.Option(help="Share of a GPU that each seed gets, with --on.")] = 0.25,
    device: Device = "auto",
    step: Annotated[
        Literal["auto", "eager", "graph"], typer.Option(help="Kind of step; graph: captured as CUDA graphs.")
    ] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log for TensorBoard.")] = False,
    json_output: Json = False,
    **recipe_values: Any,
) -> None:
    """Train a network by a recipe.

    Every key of the recipe has a flag, which replaces the value in the recipe.
    """
    from toolkit.display import TrainingDisplay, decoding_bar, download_bar, run_lines, seeds_lines
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
    train_elsewhere = None if on is None else functools.partial(train_seeds_elsewhere, launch_options)
    with download_bar() as progress, decoding_bar() as on_pictures:
        result = launch(
            launch_options,
            display=TrainingDisplay,
            note=note,
            download_progress=progress,
            on_pictures=on_pictures,
            train_elsewhere=train_elsewhere,
        )
    where = {"folder" if result.several else "run": as_text(result.path)}
    render = seeds_lines if result.several else run_lines
    print_result(result.summary | where, lambda: render(result.path, result.summary), as_json=json_output)


def train_seeds_elsewhere(options: Any, runs: Any, source: Any) -> None:
    """Train the unfinished runs of several seeds where `--on` says."""
    from toolkit.cluster.engines import open_training_engine
    from toolkit.cluster.training import train_seeds
    from toolkit.display import jobs_bar

    engine = open_training_engine(options.on, device=options.device, gpu_share=options.gpu_share)
    with jobs_bar("epochs") as progress:
        train_seeds(engine, runs, source=source, options=options, progress=progress, note=note)


@command
def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(help="Checkpoint, run, folder of seeds or ONNX file. [default: the newest finished run]"),
    ] = None,
    data: Data = None,
    skip_damaged: SkipDamaged = False,
    runs: Runs = Path("runs"),
    provider: Provider = "auto",
    device: Device = "auto",
    plot: Annotated[Path | None, typer.Option(help="Write the confusion matrix as a PNG file.")] = None,
    json_output: Json = False,
) -> None:
    """Measure a model on the test set.

    Prints accuracy per class and in all, confusion matrix and calibration error.
    """
    from toolkit.data.dataset import name_of_data
    from toolkit.display import metrics_lines, seeds_metrics_lines
    from toolkit.evaluation.evaluate import evaluate as evaluate_model
    from toolkit.evaluation.evaluate import evaluate_seeds, load_model, training_data_of
    from toolkit.evaluation.plots import plot_confusion
    from toolkit.runs.checkpoint import load_checkpoint
    from toolkit.runs.folder import find_checkpoint
    from toolkit.runs.seeds import find_seeds

    if plot is not None:
        require_writable(plot, suffix=".png")
    seed_runs = find_seeds(target, root=runs) if target is not None else None
    if seed_runs is not None:
        if plot is not None or provider != "auto":
            option = "--plot" if plot is not None else "--provider"
            raise UsageError(f"{option} takes one model: name one seed, such as {seed_runs.runs[0].path}")
        first = seed_runs.runs[0].best
        recorded = load_checkpoint(first).data
        source = find_data(data, recorded=recorded, model=first, skip_damaged=skip_damaged)
        note(f"Evaluating the {seed_runs.n} seeds in {seed_runs.path} on the test set of {source.name}")
        result = evaluate_seeds(seed_runs, source=source, device=device)
        print_result(result.as_dict(), lambda: seeds_metrics_lines(result), as_json=json_output)
        return
    path = find_checkpoint(target, data=name_of_data(data), root=runs, note=note)
    model = load_model(path, provider=provider, device=device)
    source = find_data(data, recorded=training_data_of(model), model=path, skip_damaged=skip_damaged)
    note(f"Evaluating {path} on the test set of {source.name}")
    metrics = evaluate_model(model, source=source, device=device)
    print_result({"file": as_text(path)} | metrics.as_dict(), lambda: metrics_lines(metrics), as_json=json_output)
    if plot is not None:
        plot_confusion(metrics, plot, title=f"{path.name}: test set")
        note(f"Confusion matrix: {plot}")


def find_data(data: str | None, *, recorded: Mapping[str, str], model: Path, skip_damaged: bool) -> Any:
    """Find the data set; without --data that on which the model was trained, as far as it or its run records that."""
    from toolkit.data.dataset import FOUND_BY_NAME, PICTURES, name_of_data
    from toolkit.data.dataset import find_data as find
    from toolkit.display import decoding_bar, download_bar
    from toolkit.runs.location import location_beside

    name = recorded.get("name")
    if data is None and name in FOUND_BY_NAME:
        note(f"Using the {name} data, on which this model was trained")
        data = name
    elif data is None and name == PICTURES:
        location = location_beside(model)
        if location is not None:
            note(f"Using the pictures in {display(location.path)}, on which this model was trained")
            data, skip_damaged = str(location.path), skip_damaged or location.skip_damaged
        elif name_of_data() != PICTURES:
            raise UsageError(f"{display(model)} was trained on a folder of pictures: name it with --data FOLDER")
    with download_bar() as progress, decoding_bar() as on_pictures:
        source = find(data, skip_damaged=skip_damaged, progress=progress, on_pictures=on_pictures, note=note)
        if source.name == PICTURES:
            source.train()  # decodes the pictures while the bar is shown
        return source


@command
def export(
    output: Annotated[Path, typer.Argument(help="ONNX file to write, or a folder for model.onnx.")] = Path(
        "model.onnx"
    ),
    run: Annotated[str | None, typer.Option(help="Run, by name or path. [default: the newest finished one]")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file instead of a run.")] = None,
    data: Data = None,
    skip_damaged: SkipDamaged = False,
    runs: Runs = Path("runs"),
    min_accuracy: MinAccuracy = None,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="Number format of the model.")] = "fp32",
    target: Annotated[Literal["cpu", "gpu"], typer.Option(help="Hardware that int8 is quantized for.")] = "cpu",
    input_format: Annotated[
        Literal["uint8-nhwc", "float-nchw", "picture"],
        typer.Option("--input", help="Layout of the input; picture: one decoded picture of any size."),
    ] = "uint8-nhwc",
    opset: Annotated[int | None, typer.Option(help="ONNX operator set. [default: the tested one]")] = None,
    provider: GateProvider = "cpu",
    json_output: Json = False,
) -> None:
    """Export a checkpoint to ONNX, through the gate.

    The file appears only after it has passed the gate; exit code 3: rejected.
    """
    from toolkit.data.dataset import name_of_data
    from toolkit.deploy import export_onnx
    from toolkit.deploy.accuracy import choose_floor
    from toolkit.deploy.export import OPSET
    from toolkit.deploy.gate import check_arguments
    from toolkit.runs.checkpoint import load_checkpoint
    from toolkit.runs.folder import find_checkpoint

    if run is not None and checkpoint is not None:
        raise UsageError("give --run or --checkpoint, not both")
    if os.path.isdir(output) or str(output).endswith(("/", os.sep)):
        output = output / "model.onnx"
    require_writable(output)
    check_arguments(min_accuracy=min_accuracy, provider=provider)
    source_file = checkpoint or find_checkpoint(run, data=name_of_data(data), root=runs, note=note)
    note(f"Exporting {source_file}")
    trained = load_checkpoint(source_file)
    min_accuracy = choose_floor(min_accuracy, data=trained.data.get("name", ""), val_accuracy=trained.val_accuracy)
    export_model = functools.partial(
        export_onnx,
        trained,
        output,
        data=find_data(data, recorded=trained.data, model=source_file, skip_damaged=skip_damaged),
        min_accuracy=min_accuracy,
        precision=precision,
        target=target,
        input_format=input_format,
        opset=opset or OPSET,
        provider=provider,
        note=note,
    )
    print_gate_report(export_model, output, as_json=json_output)
    note(f"Verified and written: {output}")


@command
def verify(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint it was exported from, for parity.")] = None,
    data: Data = None,
    skip_damaged: SkipDamaged = False,
    min_accuracy: MinAccuracy = None,
    provider: GateProvider = "cpu",
    json_output: Json = False,
) -> None:
    """Run the gate on an existing ONNX file; exit code 3: rejected."""
    from toolkit.deploy import verify as verify_model
    from toolkit.deploy.metadata import recorded_data

    source = find_data(data, recorded=recorded_data(model), model=checkpoint or model, skip_damaged=skip_damaged)
    verify_file = functools.partial(
        verify_model,
        model,
        data=source,
        checkpoint=checkpoint,
        min_accuracy=min_accuracy,
        provider=provider,
        note=note,
    )
    print_gate_report(verify_file, model, as_json=json_output)


def print_gate_report(run_gate: Callable[[], Any], path: Path, *, as_json: bool) -> None:
    """Run the gate and print its report, also if it rejects the model."""
    from toolkit.deploy.report import Rejected
    from toolkit.display import report_lines

    rejection = None
    try:
        report = run_gate()
    except Rejected as error:
        report, rejection = error.report, error
    print_result({"file": as_text(path)} | report.as_dict(), lambda: report_lines(report), as_json=as_json)
    if rejection is not None:
        raise rejection


@command
def predict(
    paths: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, or - for standard input.", metavar="PATH...")
    ],
    model: Annotated[
        str | None, typer.Option(help="ONNX file. [default: $CIFAR_MODEL, ./model.onnx, the shipped model]")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of classes to print.", min=1)] = 1,
    format: Annotated[
        Literal["table", "json", "jsonl", "csv"] | None,
        typer.Option(help="Form of the result. [default: table; csv with --out]", show_default=False),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the pictures with their classes, as a PNG file.")] = None,
    batch_size: Annotated[
        int, typer.Option(help="Largest batch; the CPU never uses more than 16.", min=1, max=4096)
    ] = 64,
    provider: Provider = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result in parts; repeat the command to resume.")
    ] = None,
    on: On = None,
) -> None:
    """Classify picture files.

    A bad file gets one line on stderr, and exit code 1 when the others are done.
    """
    import warnings

    from toolkit.inference import Classifier, Failure
    from toolkit.inference.output_format import format_predictions

    if out is not None or on is not None:
        if out is None or plot is not None or provider not in ("auto", "cpu"):
            raise UsageError("--on needs --out FOLDER, which takes neither --plot nor a --provider other than cpu")
        predict_parts(paths, out, on=on or "local", model=model, format=format or "csv", top=top)
        return
    if plot is not None:
        require_writable(plot, suffix=".png")
    warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF and large pictures: failures are reported per file
    classifier = Classifier(model, provider=provider)
    session = classifier.session
    note(f"Model: {display(session.path)}, {session.note or f'running on {session.provider}'}")
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
    if plot is not None and drawn:
        from toolkit.evaluation.plots import plot_predictions

        plot_predictions(drawn, plot)
        note(f"Picture: {plot}")
    if failures:
        raise typer.Exit(1)


def predict_parts(paths: list[str], out: Path, *, on: str, **options: Any) -> None:
    """Predict into part files where `--on` says, and print how many there are."""
    from toolkit.cluster.engines import open_prediction_engine
    from toolkit.cluster.prediction import predict_to_folder
    from toolkit.display import jobs_bar

    engine = open_prediction_engine(on)
    with jobs_bar("pictures") as progress:
        result = predict_to_folder(engine, paths, out, progress=progress, **options)
    failures = 0
    for failures, error in enumerate(result.failures(), 1):
        if failures <= 20:
            print_error(error)
    kept = f", {result.kept} of them from before" if result.kept else ""
    typer.echo(f"{display(out)}: {result.parts} parts{kept}; {result.pictures:,} pictures; {failures} errors")
    if failures:
        raise typer.Exit(1)


@functools.partial(command, handles_signals=True)
def serve(
    model: Annotated[
        str | None, typer.Option(help="ONNX file. [default: $CIFAR_MODEL, ./model.onnx, the shipped one]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.", min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(help="Processes; they share the cores.", min=1)] = 1,
    provider: Provider = "auto",
) -> None:
    """Serve the model over HTTP until SIGTERM or Ctrl-C, which finish the accepted requests first."""
    from toolkit.serving import serve as serve_model

    serve_model(model, provider=provider, host=host, port=port, workers=workers, announce=note)


@command
def page(
    output: Annotated[Path, typer.Argument(help="HTML file to write.")],
    model: Annotated[str | None, typer.Option(help="ONNX file. [default: as for `cifar predict`]")] = None,
    json_output: Json = False,
) -> None:
    """Write the model as one HTML file that classifies pictures in any browser, offline."""
    from toolkit.serving.page import write_page

    written = write_page(output, model)
    values = {"path": as_text(written.path), "bytes": written.size, "model_sha256": written.model_sha256}
    print_result(
        values,
        lambda: f"{display(written.path)}: {written.size / 1e6:.1f} MB; open it in a browser",
        as_json=json_output,
    )


@command
def models(json_output: Json = False) -> None:
    """List the networks and their cost."""
    from models.cost import all_costs
    from toolkit.display import models_lines

    costs = all_costs()
    print_result([cost.as_dict() for cost in costs], lambda: models_lines(costs), as_json=json_output)


@command
def data(
    folder: Annotated[str | None, typer.Argument(help="The same as --data.", metavar="[FOLDER]")] = None,
    data: Data = None,
    skip_damaged: SkipDamaged = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download CIFAR-10 or CIFAR-100 if missing.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw training pictures of each class, as the network sees them, as a PNG file.")
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Write sample pictures into this folder.")] = None,
    per_class: Annotated[int, typer.Option(help="Sample pictures of each class.", min=1)] = 1,
    json_output: Json = False,
) -> None:
    """Check the data set and count its pictures; fetch it; draw a contact sheet; write sample pictures."""
    from toolkit.data.dataset import data_status, fetch_data, write_samples
    from toolkit.data.dataset import find_data as find
    from toolkit.data.report import draw_contact_sheet, report_data
    from toolkit.display import data_lines, decoding_bar, download_bar

    if folder is not None and data is not None:
        raise UsageError("give FOLDER or --data, not both")
    data = folder if data is None else data
    if sheet is not None:
        require_writable(sheet, suffix=".png")
    status = data_status(data)
    if fetch and not status.complete and status.folder is not None:
        with download_bar() as progress:
            fetch_data(data, progress=progress)
        status = data_status(data)
    if not status.complete:
        print_result(status.as_dict(), lambda: data_lines(status), as_json=json_output)
        find(data, fetch=False)  # where files are missing, its error names them, and what a folder may hold instead
        where = f" --data {shlex.quote(data)}" if data else ""
        raise ToolkitError(f"the data are damaged: `cifar data --fetch{where}` replaces the damaged files")
    with decoding_bar() as on_pictures:
        source = find(data, fetch=False, skip_damaged=skip_damaged, on_pictures=on_pictures, note=note)
        report = report_data(source)
    written = write_samples(source, samples, per_class=per_class) if samples else []
    values = status.as_dict() | report.as_dict() | {"samples": [as_text(path) for path in written]}
    count = f"\n{len(written)} sample pictures in {display(samples)}" if samples else ""
    print_result(values, lambda: data_lines(status, report) + count, as_json=json_output)
    if sheet is not None:
        note(f"Contact sheet: {display(draw_contact_sheet(source, sheet))}")


@command
def doctor(data: Data = None, json_output: Json = False) -> None:
    """Check this machine: libraries, providers, data."""
    import dataclasses

    from toolkit.display import doctor_lines
    from toolkit.doctor import examine

    findings = examine(data)
    values = [dataclasses.asdict(finding) for finding in findings]
    print_result(values, lambda: doctor_lines(findings), as_json=json_output)
    if any(finding.ok is False for finding in findings):
        raise ToolkitError("a required part does not work; the remedies are listed above")


@command
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("cifar-demo"),
) -> None:
    """Run the whole pipeline on drawn pictures, in about a minute."""
    from toolkit.demo import demo_commands, demo_folder

    place = demo_folder(folder)
    for arguments in demo_commands(place):
        typer.echo(f"\n$ cifar {shlex.join(arguments)}")
        if exit_code := app(arguments, standalone_mode=False):
            raise typer.Exit(exit_code)
    typer.echo(f"\nThat was the whole pipeline, on drawn pictures; all files are in {place}. On CIFAR-10:")
    typer.echo("  cifar train --recipe fast --val-size 0\n  cifar export model.onnx\n  cifar predict cat.png")


def main() -> None:
    """Entry point of the `cifar` command."""
    run_app(app)


if __name__ == "__main__":
    main()
