"""Typer options: the options that several commands share, and the long options of single commands."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from toolkit.recipes.recipe import preset_names

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="cifar10, cifar100, demo (synthetic pictures), a folder of CIFAR files or of pictures, or a CSV file. "
        "[default: $CIFAR_DATA, then CIFAR-10 in the cache folder]",
    ),
]
SkipDamaged = Annotated[bool, typer.Option("--skip-damaged", help="Continue without pictures that cannot be read.")]
Model = Annotated[
    str | None, typer.Option("--model", help="ONNX file. [default: $CIFAR_MODEL, ./model.onnx, the shipped model]")
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
MinAccuracy = Annotated[
    float | None,
    typer.Option(
        "--min-accuracy", help="Required accuracy on the test set, in (0, 1]. [CIFAR-10: 0.91; own pictures: required]"
    ),
]
Provider = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt"], typer.Option("--provider", help="Where ONNX Runtime runs the model.")
]
GateProvider = Annotated[Literal["cpu", "cuda"], typer.Option("--provider", help="Where the checks run the model.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Quick = Annotated[bool, typer.Option("--quick", help="One short round.")]
BatchSizes = Annotated[list[int] | None, typer.Option("--batch-size", help="Images per batch; may be repeated.")]
On = Annotated[
    str | None,
    typer.Option("--on", help="Where to run: local (processes), ray, or the address of a Ray cluster."),
]

# Of `cifar train`

RecipeName = Annotated[
    str | None, typer.Option("--recipe", help=f"File, or preset: {', '.join(preset_names())}. [default: reference]")
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init", help="Run or checkpoint with the initial weights, or `shipped`. The default recipe is then finetune."
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher", help="Run or checkpoint to distill from. [default: trained first, if the recipe distills]"
    ),
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", help="Train seeds 0 to N-1; repeat the command to resume.", min=1, metavar="N")
]
Step = Annotated[
    Literal["auto", "eager", "graph"], typer.Option("--step", help="How steps run: eager, or captured as CUDA graphs.")
]

# Of `cifar evaluate`

Target = Annotated[
    str | None,
    typer.Argument(help="Checkpoint, run, folder of seeds or ONNX file. [default: the newest finished run]"),
]

# Of `cifar export`

Output = Annotated[Path, typer.Argument(help="ONNX file to write, or a folder for model.onnx.")]
InputFormat = Annotated[
    Literal["uint8-nhwc", "float-nchw", "picture"],
    typer.Option("--input", help="Layout of the input; picture: one decoded picture of any size."),
]

# Of `cifar predict`

Format = Annotated[
    Literal["table", "json", "jsonl", "csv"] | None,
    typer.Option("--format", help="Output format. [default: table; csv with --out]", show_default=False),
]
PredictionsPlot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw the pictures with their classes, at most 36, as a PNG file."),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="Largest batch; capped at 32 on the CPU.", min=1, max=4096)
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Write results as part files into this folder; repeat the command to resume."),
]
ContactSheet = Annotated[
    Path | None, typer.Option(help="Draw training pictures of each class, as the network sees them, as a PNG file.")
]
PicturePaths = Annotated[
    list[str], typer.Argument(help="Files, folders, globs, or - for standard input.", metavar="PATH...")
]
