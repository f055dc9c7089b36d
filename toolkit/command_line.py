"""Turn functions into commands: --quiet, recipe flags, exit codes for errors, output."""

import contextlib
import functools
import gc
import inspect
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args

import typer

from toolkit import __version__
from toolkit.cores import limit_spinning
from toolkit.errors import ToolkitError
from toolkit.files import escape
from toolkit.interrupt import EXIT_CODE, end_on_signals
from toolkit.recipes.recipe import recipe_keys
from toolkit.reporting import is_silenced, silence

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors: no notes, no progress.")]

Command = TypeVar("Command", bound=Callable[..., None])


def command(
    group: typer.Typer, *, name: str | None = None, handles_signals: bool = False, enables_gc: bool = False
) -> Callable[[Command], Command]:
    """Decorate a command of `group`: adds --quiet, and turns errors into a message and an exit code.

    Args:
        group: where it is registered.
        name: the command's name; by default the function's.
        handles_signals: whether the command handles Ctrl-C and SIGTERM itself.
        enables_gc: whether the command itself calls `enable_gc`, once it has loaded its modules.
    """

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def run(*args: Any, quiet: bool = False, **kwargs: Any) -> None:
            limit_spinning()
            if not enables_gc:
                enable_gc()
            try:
                with silence(quiet), contextlib.nullcontext() if handles_signals else end_on_signals():
                    function(*args, **kwargs)
            except ToolkitError as error:
                print_error(str(error))
                raise typer.Exit(error.exit_code) from error
            except KeyboardInterrupt as interrupt:
                typer.echo(escape(str(interrupt)) or "interrupted", err=True)
                raise typer.Exit(EXIT_CODE) from interrupt

        add_parameters(run, function, {"quiet": (Quiet, False)})
        group.command(name)(run)
        return function

    return register


def add_parameters(target: Any, function: Callable[..., None], added: dict[str, tuple[Any, Any]]) -> None:
    """Give `target` the signature of `function` for Typer, with `added` (annotation, default) for its **kwargs."""
    signature = inspect.signature(function, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    new = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in added.items()
    ]
    target.__signature__ = signature.replace(parameters=[*kept, *new])
    target.__annotations__ = {p.name: p.annotation for p in (*kept, *new)} | {"return": None}


def add_recipe_flags(function: Command) -> Command:
    """Add a flag for each recipe key to a command, passed in its **kwargs; None if the flag is not given."""
    added = {}
    for key in recipe_keys():
        kind = key.type if key.type in (int, float, bool) or get_args(key.type)[:1] != (int,) else str  # "75,113"
        names = [key.flag, *(["--lr"] if key.name == "learning_rate" else [])]
        names = [f"{key.flag}/--no-{key.flag[2:]}"] if kind is bool else names
        help = f"{key.help[0].upper()}{key.help[1:]}. [reference: {format_default(key.default)}]"
        added[key.name] = (Annotated[kind | None, typer.Option(*names, help=help)], None)
    add_parameters(function, function, added)
    return function


def format_default(value: Any) -> str:
    """Format a default value for the help of its flag."""
    return str(value).lower() if isinstance(value, bool) else str(value) if value != () else "none"


def note(text: str) -> None:
    """Print a line on stderr, unless --quiet was given; only results go to stdout."""
    if not is_silenced():
        typer.echo(escape(text), err=True)


def print_error(text: str) -> None:
    typer.echo(f"error: {escape(text)}", err=True)


def print_result(values: Any, text: Callable[[], str], *, as_json: bool) -> None:
    """Print a result on stdout: `values` as JSON, or the text for a terminal."""
    typer.echo(json.dumps(values, indent=2) if as_json else "\n".join(map(escape, text().split("\n"))))


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cifar {__version__}")
        raise typer.Exit


def run_app(app: typer.Typer) -> None:
    """Run the command line as a program; report an `OSError` in one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    gc.disable()  # until `enable_gc`
    try:
        app()
    except SystemExit as end:
        if end.code == EXIT_CODE or _without_cleanup:
            discard_output()
            os._exit(int(end.code or 0))  # the interpreter's own exit waits for all threads: seconds with torch
        raise
    except OSError as error:  # a full disk behind standard output, no room for a temporary file, ...
        with contextlib.suppress(OSError):
            print_error(str(error))
        discard_output()
        sys.exit(1)


def enable_gc() -> None:
    """Enable garbage collection for new objects only: scanning the loaded modules takes 10 ms of `cifar predict`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


_without_cleanup = False


def skip_cleanup() -> None:
    """Let `run_app` end the process without calling exit handlers or freeing objects, which takes 15 ms."""
    global _without_cleanup
    _without_cleanup = True


def discard_output() -> None:
    """Flush stdout; if that fails, redirect it to the null device, so that the flush at exit does not fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
