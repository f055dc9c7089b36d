"""The command line: parse, call one function, print its result. Heavy imports stand inside the commands."""

import contextlib
import functools
import gc
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from toolkit import __version__
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import as_text, display

app = typer.Typer(
    name="cifar",
    help="Train ResNet-20 on CIFAR-10, export it to ONNX with proof, and predict image files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="Folder with CIFAR-10, or `demo` for the drawn set. [default: $CIFAR_DATA, then the cache]"
    ),
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunOption = Annotated[
    str | None, typer.Option("--run", help="A run, by name or path. [default: the newest finished one]")
]
CheckpointOption = Annotated[Path | None, typer.Option("--checkpoint", help="A checkpoint file instead of a run.")]
MinAccuracy = Annotated[float, typer.Option("--min-accuracy", help="Least accuracy on the whole test set, in (0, 1].")]
Provider = Annotated[str, typer.Option("--provider", help="Where ONNX Runtime runs: auto, cpu, cuda or tensorrt.")]

Command = TypeVar("Command", bound=Callable[..., None])


def command(function: Command, *, group: typer.Typer = app, name: str | None = None) -> Command:
    """Make a function a command, of `group`: its errors become a message and an exit code, here and nowhere else."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # a request to stop is treated as Ctrl-C is
            function(*args, **kwargs)
        except ToolkitError as error:
            note(f"error: {display(str(error))}")  # whatever a file's name or contents put in: one line
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            note("interrupted" if not str(interrupt) else str(interrupt))
            raise typer.Exit(130) from interrupt

    group.command(name)(run)
    return function


def note(text: str) -> None:
    """Progress, notes and errors go to stderr; only results go to stdout."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cifar {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of `cifar` itself, before any command."""


def _flag(help: str) -> Any:
    """A key of the recipe: what is given here overrides the recipe's own value."""
    return typer.Option(help=f"Recipe: {help}", show_default=False)


@command
def train(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Option(help="A preset (reference, fast, best, teacher, demo), or a TOML or JSON file.")
    ] = "reference",
    data: Data = None,
    teacher: Annotated[
        str | None, typer.Option(help="Learn from this run or checkpoint too; needs --distillation-weight.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder. [default: from the recipe]")] = None,
    runs: Runs = Path("runs"),
    resume: Annotated[str | None, typer.Option(help="Go on with this run, by name or path, where it stopped.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Train seeds 0 to N-1, and report mean and spread. Given again, it goes on.", min=1),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    step: Annotated[
        Literal["auto", "eager", "graph"],
        typer.Option(help="Kind of step: auto, eager or graph (captured as CUDA graphs)."),
    ] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log for TensorBoard in the run folder.")
    ] = False,
    json_output: Json = False,
    optimizer: Annotated[str | None, _flag("SGD, Adam or Muon.")] = None,
    momentum: Annotated[float | None, _flag("Momentum of SGD and Muon; Adam's beta1.")] = None,
    nesterov: Annotated[bool | None, _flag("SGD only: Nesterov's form of the momentum.")] = None,
    learning_rate: Annotated[float | None, _flag("The highest learning rate of the run.")] = None,
    sgd_learning_rate: Annotated[float | None, _flag("Muon only: the highest rate of all but convolutions.")] = None,
    lr_schedule: Annotated[str | None, _flag("cosine_annealing, step_decay or linear.")] = None,
    lr_milestones: Annotated[str | None, _flag("step_decay: the epochs, such as 75,113.")] = None,
    lr_gamma: Annotated[float | None, _flag("step_decay: the factor at each milestone.")] = None,
    warmup_epochs: Annotated[float | None, _flag("Epochs over which the learning rate first rises from 0.")] = None,
    weight_decay: Annotated[float | None, _flag("L2 penalty on convolution and linear weights.")] = None,
    dropout_rate: Annotated[float | None, _flag("Dropout before the linear layer.")] = None,
    label_smoothing: Annotated[float | None, _flag("Share of each label spread over the classes.")] = None,
    distillation_weight: Annotated[float | None, _flag("Share of the --teacher in the loss; 0: none.")] = None,
    distillation_temperature: Annotated[float | None, _flag("Softens the teacher's and the student's answers.")] = None,
    ema_decay: Annotated[float | None, _flag("Decay of a moving average of the weights; 0: none.")] = None,
    batch_size: Annotated[int | None, _flag("Images a step.")] = None,
    epochs: Annotated[int | None, _flag("Passes over the training images.")] = None,
    early_stopping: Annotated[str | None, _flag("false, or the patience in epochs.")] = None,
    random_crop: Annotated[bool | None, _flag("Cut a random window out of the padded image.")] = None,
    crop_padding: Annotated[int | None, _flag("Black pixels on each side before the crop.")] = None,
    horizontal_flip: Annotated[bool | None, _flag("Mirror images with probability one half.")] = None,
    mixup_alpha: Annotated[float | None, _flag("Mixup's Beta(alpha, alpha); 0: no mixup.")] = None,
    random_erasing: Annotated[float | None, _flag("Probability that a random rectangle is erased.")] = None,
    small_crop_size: Annotated[int | None, _flag("Side of the smaller crops of the first epochs, pixels.")] = None,
    small_crop_share: Annotated[float | None, _flag("Share of the epochs that train on the smaller crops.")] = None,
    model: Annotated[str | None, _flag("The network: see `cifar models`.")] = None,
    seed: Annotated[int | None, _flag("Seed of weights, order and augmentation.")] = None,
    val_size: Annotated[int | None, _flag("Training images held out for validation; 0: train on all.")] = None,
    precision: Annotated[str | None, _flag("auto, float32 or bfloat16.")] = None,
) -> None:
    """Train a network; every choice is in the recipe, and each key of the recipe has a flag."""
    from toolkit.data.dataset import find_data
    from toolkit.device import choose_device
    from toolkit.display import download_bar, run_lines, seeds_lines
    from toolkit.recipes.recipe import load_recipe, recipe_from_flags
    from toolkit.runs.checkpoint import load_checkpoint
    from toolkit.runs.folder import create_run, open_run
    from toolkit.runs.seeds import begin_seeds
    from toolkit.training.distillation import require_fitting

    choose_device(device)  # before anything is made
    changes = recipe_from_flags(context.params)
    if seeds is not None and (resume is not None or seed is not None):
        raise UsageError(
            "--seeds N trains the seeds 0 to N-1, and goes on with them when the same command is given again: "
            f"leave out {'--resume' if resume is not None else '--seed'}"
        )
    if resume is not None:
        if changes or name is not None or teacher is not None or _given(context, "recipe"):
            raise UsageError(
                "--resume goes on with the run's own recipe and teacher: "
                "leave out --recipe, --name, --teacher and the recipe's flags"
            )
        run = open_run(resume, root=runs)
        if run.is_finished:
            raise UsageError(f"the run {run.path} is finished: there is nothing to resume")
        chosen = run.recipe()
    else:
        chosen = load_recipe(recipe).replaced(changes)
    path = Path(recipe)
    stem = path.parent.name if path.name == "recipe.toml" and path.parent.name else path.stem
    together = name or f"{stem}-{chosen.run.model}-seeds"  # the folder of several seeds
    begun = run.last if resume is not None else runs / together / "seed0" / "last.pt" if seeds is not None else None
    with download_bar() as progress:
        source = find_data(data or _demo_if_trained_on_it(begun), progress=progress)
    taught_by = load_checkpoint(_model_file(teacher, runs)) if teacher is not None else None
    if resume is None:
        require_fitting(taught_by, chosen, source.class_names)  # before anything is made
    options = ["--data", data] if data else []
    options += ["--device", device] if device != "auto" else []
    options += ["--step", step] if step != "auto" else []
    options += ["--tensorboard"] if tensorboard else []
    train_run = functools.partial(
        _train_run,
        source=source,
        teacher=taught_by,
        device=device,
        step=step,
        tensorboard=tensorboard,
        suggest_fast=recipe == "reference",
    )
    if seeds is not None:
        all_runs = begin_seeds(chosen, seeds=seeds, source=source, name=together, root=runs, teacher=taught_by)
        options += ["--teacher", teacher] if teacher else []
        options += ["--runs", str(runs)] if runs != Path("runs") else []
        summary = _train_all(all_runs, train_run, options=["--name", together, *options])
        where = {"folder": as_text(all_runs.path)}
        print_json(where | summary) if json_output else typer.echo(seeds_lines(all_runs.path, summary))
        return
    if resume is None:
        run = create_run(chosen, stem=f"{stem}-{chosen.run.model}-seed{chosen.run.seed}", name=name, root=runs)
    train_run(run, resume=resume is not None, go_on=["--resume", str(run.path), *options])
    summary = run.read_summary()
    print_json(summary | {"run": as_text(run.path)}) if json_output else typer.echo(run_lines(run.path, summary))


def _train_all(together: Any, train_run: Callable[..., None], *, options: list[str]) -> dict[str, Any]:
    """Train the seeds that are not finished, one after the other; returns the summary over all."""
    recipe = str(together.runs[0].path / "recipe.toml")  # whose own seed does not count
    for run in together.runs:
        if run.is_finished:
            note(f"Finished before, and kept: {run.path}")
        else:
            train_run(run, resume=run.last.is_file(), go_on=["--seeds", str(together.n), "--recipe", recipe, *options])
    summary: dict[str, Any] = together.write_summary()
    return summary


def _train_run(
    run: Any,
    *,
    resume: bool,
    source: Any,
    teacher: Any,
    device: str,
    step: Any,
    tensorboard: bool,
    suggest_fast: bool,
    go_on: list[str],
) -> None:
    """Train a run, or go on with it, and show its progress; Ctrl-C tells that `cifar train` with `go_on` goes on."""
    from toolkit.display import TrainingDisplay
    from toolkit.training.trainer import train as train_network

    chosen = run.recipe()
    note(f"{'Going on with' if resume else 'Training'} {chosen.run.model} on {source.name}, in {run.path}")
    shown = TrainingDisplay(
        chosen,
        epochs_done=len(run.read_metrics()),
        suggest_fast=suggest_fast and not resume and source.name == "cifar10",
    )
    try:
        with shown:
            records = train_network(
                chosen,
                source=source,
                run=run,
                device=device,
                resume=resume,
                teacher=teacher,
                progress=shown.step,
                mode=step,
                note=shown.note,
            )
            for record in _logged(records, run.path) if tensorboard else records:
                shown.epoch(record)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            f"interrupted; the last epoch boundary is kept in {run.path}. "
            f"Go on with: {shlex.join(['cifar', 'train', *go_on])}"
        ) from interrupt


def _given(context: typer.Context, name: str) -> bool:
    """Whether the user gave this option, rather than its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _demo_if_trained_on_it(path: Path | None) -> str | None:
    """`demo` where a checkpoint or an ONNX file says that it belongs to the drawn data: those need no --data."""
    if path is None or not path.is_file():
        return None
    from toolkit.deploy.metadata import claimed_data

    if claimed_data(path).get("name") != "demo":
        return None
    note("Taking the drawn data, on which this was trained")
    return "demo"


def _logged(records: Any, folder: Path) -> Any:
    from toolkit.training.tensorboard import logged

    return logged(records, folder)


@command
def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint, a run, a folder of seeds, or an ONNX file. [default: the newest finished run]"
        ),
    ] = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    provider: Provider = "auto",
    device: Annotated[str, typer.Option(help="For checkpoints: auto, cpu, cuda, cuda:N or mps.")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="Write the confusion matrix as a PNG file.")] = None,
    json_output: Json = False,
) -> None:
    """Accuracy, per class and in all, confusion matrix and calibration error on the whole test set."""
    from toolkit.data.dataset import find_data
    from toolkit.display import download_bar, metrics_lines, seeds_metrics_lines
    from toolkit.evaluation.evaluate import evaluate as evaluate_file
    from toolkit.evaluation.evaluate import evaluate_seeds
    from toolkit.evaluation.plots import plot_confusion
    from toolkit.runs.seeds import find_seeds

    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot writes PNG files, so {plot} must end in .png")
    together = find_seeds(target, root=runs) if target is not None else None
    if together is not None:
        if plot is not None:
            raise UsageError(f"--plot draws the matrix of one model: name one, such as {together.runs[0].path}")
        if provider != "auto":
            raise UsageError(f"{together.path} holds checkpoints, which PyTorch runs: --device, not --provider")
        with download_bar() as progress:
            source = find_data(data or _demo_if_trained_on_it(together.runs[0].best), progress=progress)
        note(f"Evaluating the {together.n} seeds in {together.path} on the test set of {source.name}")
        result = evaluate_seeds(together, source=source, device=device)
        print_json(result.as_dict()) if json_output else typer.echo(seeds_metrics_lines(result))
        return
    path = _model_file(target, runs)
    with download_bar() as progress:
        source = find_data(data or _demo_if_trained_on_it(path), progress=progress)
    note(f"Evaluating {path} on the test set of {source.name}")
    metrics = evaluate_file(path, source=source, provider=provider, device=device)
    print_json({"file": as_text(path)} | metrics.as_dict()) if json_output else typer.echo(metrics_lines(metrics))
    if plot is not None:
        plot_confusion(metrics, plot, title=f"{path.name}: test set")
        note(f"Confusion matrix in {plot}")


def _model_file(target: str | None, runs: Path) -> Path:
    """The file that the user means: itself, or the best checkpoint of a run."""
    if target is not None and os.path.lexists(target) and not os.path.isdir(target):
        return Path(target)
    if target is not None and Path(target).suffix in (".onnx", ".pt"):
        raise ToolkitError(f"no such file: {target}")
    return _run_checkpoint(target, runs)


def _run_checkpoint(run: str | None, runs: Path) -> Path:
    from toolkit.runs.folder import newest_finished_run, open_run

    folder = newest_finished_run(root=runs) if run is None else open_run(run, root=runs)
    if not folder.best.is_file():
        raise ToolkitError(f"the run {folder.path} has no finished epoch yet: `cifar train --resume {folder.path}`")
    if not folder.is_finished:
        note(f"The run {folder.path} is not finished: taking its best epoch so far")
    return folder.best


@command
def export(
    output: Annotated[Path, typer.Argument(help="Where the verified ONNX file goes.")],
    run: RunOption = None,
    checkpoint: CheckpointOption = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    min_accuracy: MinAccuracy = 0.91,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    target: Annotated[str, typer.Option(help="What int8 is quantised for: cpu or gpu.")] = "cpu",
    input_form: Annotated[str, typer.Option("--input", help="uint8-nhwc or float-nchw.")] = "uint8-nhwc",
    opset: Annotated[int | None, typer.Option(help="ONNX operator set. [default: the tested one]")] = None,
    provider: Annotated[str, typer.Option(help="Where the gate runs the model: cpu or cuda.")] = "cpu",
    json_output: Json = False,
) -> None:
    """Export a checkpoint to ONNX. The file appears only after it has passed the gate; exit code 3: rejected."""
    from toolkit.data.dataset import find_data
    from toolkit.deploy.export import OPSET, export_onnx
    from toolkit.deploy.report import Rejected
    from toolkit.display import download_bar

    if run is not None and checkpoint is not None:
        raise UsageError("give --run or --checkpoint, not both")
    source_file = checkpoint or _run_checkpoint(run, runs)
    note(f"Exporting {source_file}")
    with download_bar() as progress:
        source = find_data(data or _demo_if_trained_on_it(source_file), progress=progress)
    try:
        report = export_onnx(
            source_file,
            output,
            data=source,
            min_accuracy=min_accuracy,
            precision=precision,
            target=target,
            input=input_form,
            opset=OPSET if opset is None else opset,
            provider=provider,
            progress=note,
        )
    except Rejected as rejection:
        _print_report(rejection.report, json_output, output)
        raise
    _print_report(report, json_output, output)
    note(f"Verified and written: {output}")


@command
def verify(
    model: Annotated[Path, typer.Argument(help="The ONNX file.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint that it was exported from, for parity.")
    ] = None,
    data: Data = None,
    min_accuracy: MinAccuracy = 0.91,
    provider: Annotated[str, typer.Option(help="Where the gate runs the model: cpu or cuda.")] = "cpu",
    json_output: Json = False,
) -> None:
    """Run the gate on an ONNX file that exists; exit code 3: rejected."""
    from toolkit.data.dataset import find_data
    from toolkit.deploy.gate import verify as verify_model
    from toolkit.deploy.report import Rejected
    from toolkit.display import download_bar

    with download_bar() as progress:
        source = find_data(data or _demo_if_trained_on_it(model), progress=progress)
    try:
        report = verify_model(
            model, data=source, checkpoint=checkpoint, min_accuracy=min_accuracy, provider=provider, progress=note
        )
    except Rejected as rejection:
        _print_report(rejection.report, json_output, model)
        raise
    _print_report(report, json_output, model)


def _print_report(report: Any, json_output: bool, path: Path) -> None:
    from toolkit.display import report_lines

    print_json({"file": as_text(path)} | report.as_dict()) if json_output else typer.echo(report_lines(report))


@command
def predict(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for a picture on standard input.")],
    model: Annotated[
        str | None, typer.Option(help="ONNX file. [default: $CIFAR_MODEL, ./model.onnx, the shipped one]")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 1,
    format: Annotated[str, typer.Option(help="table, json, jsonl or csv.")] = "table",
    batch_size: Annotated[int, typer.Option(help="Most pictures a batch; 16 on the CPU.", min=1, max=4096)] = 64,
    provider: Provider = "auto",
) -> None:
    """Name what is in pictures. A bad file gets a line on stderr, and exit code 1 when the others are done."""
    import warnings

    from toolkit.inference import Classifier, Failure
    from toolkit.inference.format import FORMATS, formatted

    if format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, not {format!r}")
    warnings.simplefilter("ignore")  # Pillow's, about damaged EXIF and large pictures: each file is reported by itself
    classifier = Classifier(model, provider=provider)
    session = classifier.session
    note(f"Model: {display(session.path)}, {session.note or f'running on {session.provider}'}")
    failures = 0

    def good_ones() -> Any:
        nonlocal failures
        for result in classifier.stream(paths, batch_size=batch_size, top=top):
            if isinstance(result, Failure):
                failures += 1
                note(f"error: {result.error}")
            else:
                yield result

    for line in formatted(good_ones(), format, top=top):
        typer.echo(line)
    if failures:
        raise ToolkitError(f"{failures} of the pictures could not be read")


@command
def page(
    output: Annotated[Path, typer.Argument(help="HTML file to write.")],
    model: Annotated[str | None, typer.Option(help="ONNX file. [default: as for `cifar predict`]")] = None,
    json_output: Json = False,
) -> None:
    """Write the model as one HTML file that classifies pictures in any browser, offline."""
    from toolkit.serving.page import write_page

    written = write_page(output, model)
    if json_output:
        print_json({"path": as_text(written.path), "bytes": written.size, "model_sha256": written.model_sha256})
    else:
        typer.echo(f"{display(written.path)}: {written.size / 1e6:.1f} MB; open it in a browser")


@command
def models(json_output: Json = False) -> None:
    """List the networks: parameters, multiply-accumulates, and which keep under the design's ceiling."""
    from models import PARAMETER_CEILING
    from models.cost import all_costs

    costs = all_costs()
    if json_output:
        print_json([cost.as_dict() for cost in costs])
        return
    typer.echo(f"{'model':<15}{'parameters':>12}{'multiply-accumulates':>22}   under {PARAMETER_CEILING:,} parameters")
    for cost in costs:
        under = "yes" if cost.under_ceiling else "no"
        typer.echo(f"{cost.model:<15}{cost.parameters:>12,}{cost.multiply_accumulates:>22,}   {under}")


@command
def data(
    data: Data = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download CIFAR-10 into that folder, or the cache.")] = False,
    samples: Annotated[Path | None, typer.Option(help="Write sample pictures into this folder.")] = None,
    per_class: Annotated[int, typer.Option(help="Sample pictures of each class.", min=1)] = 1,
    json_output: Json = False,
) -> None:
    """Show what data are there and check them; fetch them; write sample pictures to predict."""
    import dataclasses

    from toolkit.data.cifar import fetch_cifar10
    from toolkit.data.dataset import data_status, find_data, write_samples
    from toolkit.display import data_lines, download_bar

    status = data_status(data)
    if fetch and not status.complete and status.folder is not None:
        with download_bar() as progress:
            fetch_cifar10(status.folder, progress=progress)
        status = data_status(data)
    written = write_samples(find_data(data, fetch=False), samples, per_class=per_class) if samples else []
    if json_output:
        folder = as_text(status.folder) if status.folder else None
        pictures = [as_text(path) for path in written]
        print_json(dataclasses.asdict(status) | {"folder": folder, "complete": status.complete, "samples": pictures})
    else:
        typer.echo(data_lines(status))
        if written:
            typer.echo(f"{len(written)} sample pictures in {samples}")
    if not status.complete:
        where = f" --data {shlex.quote(data)}" if data else ""
        raise ToolkitError(f"the data are not complete: `cifar data --fetch{where}` downloads them")


@command
def doctor(data: Data = None, json_output: Json = False) -> None:
    """Tell what this machine has, which providers really run, and the commands that mend the rest."""
    import dataclasses

    from toolkit.display import doctor_lines
    from toolkit.doctor import examine

    findings = examine(data)
    if json_output:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        typer.echo(doctor_lines(findings))
    if any(finding.ok is False for finding in findings):
        raise ToolkitError("something that is needed does not work; the remedies stand above")


@command
def demo(
    folder: Annotated[Path, typer.Option(help="A folder of its own for all that the demo makes.")] = Path("cifar-demo"),
) -> None:
    """Train, export, verify and predict on drawn pictures in about a minute, showing each command."""
    place = _fresh(folder)
    runs, model, samples = place / "runs", place / "model.onnx", place / "samples"
    for line in (
        ["train", "--recipe", "demo", "--data", "demo", "--runs", runs, "--name", "demo"],
        ["export", model, "--data", "demo", "--runs", runs],
        ["verify", model, "--data", "demo", "--checkpoint", runs / "demo" / "best.pt"],
        ["data", "--data", "demo", "--samples", samples],
        ["predict", samples, "--model", model, "--top", "3"],
    ):
        arguments = [str(word) for word in line]
        typer.echo(f"\n$ cifar {shlex.join(arguments)}")
        if exit_code := app(arguments, standalone_mode=False):
            raise typer.Exit(exit_code)
    typer.echo(f"\nThat was the whole path, on drawn pictures; everything is in {place}. On the real data it is:")
    typer.echo("  cifar train --recipe fast --val-size 0\n  cifar export model.onnx\n  cifar predict cat.png")


def _fresh(folder: Path) -> Path:
    """`folder`, or with a number behind it where it exists already."""
    candidates = [folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 10_000))]
    return next(path for path in candidates if not path.exists())


bench = typer.Typer(help="Time what the toolkit does on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")


@functools.partial(command, group=bench, name="train")
def bench_train(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images a step; may be given more than once. [default: 128, 32, 512]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round.")] = False,
    json_output: Json = False,
) -> None:
    """Our training steps beside the conventional loop, on random images of CIFAR-10's size."""
    from toolkit.bench.train import BATCH_SIZES
    from toolkit.bench.train import bench_train as measure
    from toolkit.display import training_benchmark_lines

    result = measure(device, batch_sizes=batch_size or BATCH_SIZES, quick=quick, progress=note)
    print_json(result.as_dict()) if json_output else typer.echo(training_benchmark_lines(result))


@functools.partial(command, group=bench, name="predict")
def bench_predict(
    model: Annotated[str | None, typer.Option(help="ONNX file. [default: as for `cifar predict`]")] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures in the folder. [default: 10000]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds, 500 pictures.")] = False,
    json_output: Json = False,
) -> None:
    """`cifar predict` beside a bare script and ONNX Runtime by itself: one picture, and a folder of drawn ones."""
    from toolkit.bench.predict import bench_predict as measure
    from toolkit.display import prediction_benchmark_lines

    result = measure(model, pictures=pictures, quick=quick, progress=note)
    print_json(result.as_dict()) if json_output else typer.echo(prediction_benchmark_lines(result))


@functools.partial(command, group=bench, name="deploy")
def bench_deploy(
    models: Annotated[list[Path] | None, typer.Argument(help="ONNX files. [default: the shipped one]")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="For PyTorch's side. [default: the shipped one, where there is one]")
    ] = None,
    data: Data = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="May be given more than once. [default: 1, 8, 64, 512]")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the result as a PNG file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round, nothing compiled, no accuracy.")] = False,
    json_output: Json = False,
) -> None:
    """PyTorch and ONNX Runtime side by side: latency, throughput, size, memory, start and accuracy."""
    from toolkit.bench.deploy import BATCH_SIZES
    from toolkit.bench.deploy import bench_deploy as measure
    from toolkit.display import deployment_benchmark_lines
    from toolkit.evaluation.plots import plot_deployment

    result = measure(
        models or [],
        checkpoint=checkpoint,
        data=data,
        batch_sizes=batch_size or BATCH_SIZES,
        quick=quick,
        progress=note,
    )
    print_json(result.as_dict()) if json_output else typer.echo(deployment_benchmark_lines(result))
    if plot is not None:
        plot_deployment(result, plot)
        note(f"Picture in {plot}")


def main() -> None:
    """Entry point of the `cifar` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold any bytes
    try:
        app()
    except OSError as error:  # a full disk behind standard output, no room for a temporary file, ...
        with contextlib.suppress(OSError):
            note(f"error: {display(str(error))}")
        _forget_output()
        sys.exit(1)
    finally:
        if "torch" not in sys.modules:  # whose libraries count what is not collected, and say so
            gc.freeze()  # else Python looks for garbage in all that it imported, a sixth of `cifar predict`


def _forget_output() -> None:
    """What standard output could not take is not tried again when the interpreter ends: it would complain anew."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
