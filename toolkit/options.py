"""Options that several commands have, declared once for Typer."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Folder of pictures, CSV file, folder with CIFAR, cifar10, cifar100 or demo. [default: $CIFAR_DATA, then "
        "CIFAR-10 in the cache folder]",
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
GateProvider = Annotated[Literal["cpu", "cuda"], typer.Option("--provider", help="Where the gate runs the model.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Quick = Annotated[bool, typer.Option("--quick", help="One short round.")]
BatchSizes = Annotated[list[int] | None, typer.Option("--batch-size", help="May be given more than once.")]
On = Annotated[
    str | None,
    typer.Option("--on", help="Where to run: local (processes), ray, or the address of a Ray cluster."),
]
