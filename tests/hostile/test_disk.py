"""Full disks, folders that cannot be written to, closed pipes: one line, exit code 1, and nothing else is harmed."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

import toolkit.files
from tests.support.deploy import Case, tiny_case
from tests.support.hostile import archive, contents, full_disk, linux, read_only, values_of_a_checkpoint
from tests.support.onnx_models import draw, saved, tiny_model
from tests.support.sources import ROOT, Done, FixedSource, colored_source
from tests.support.training import train_epochs
from toolkit.data.dataset import find_data, identify_data
from toolkit.deploy import export_onnx
from toolkit.errors import ToolkitError
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import create_run, open_run

pytestmark = [pytest.mark.hostile, linux, pytest.mark.slow]

Cifar = Callable[..., Done]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with tiny_case(tmp_path_factory.mktemp("run"), test=100) as case:
        yield case


@pytest.fixture(params=["full", "read-only"])
def trouble(request: pytest.FixtureRequest) -> Callable[[Path], AbstractContextManager[None]]:
    """A disk that takes no more than 100 bytes a file, or a folder in which nothing may be changed."""
    return (lambda folder: full_disk(room=100)) if request.param == "full" else read_only


def one_line(done: Done, words: str = "cannot") -> None:
    assert done.returncode == 1, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1, done.stderr
    assert words in done.stderr


def test_the_means_themselves(tmp_path: Path) -> None:
    with full_disk(room=100), pytest.raises(OSError, match="File too large"):
        (tmp_path / "x").write_bytes(bytes(101))
    with read_only(tmp_path), pytest.raises(PermissionError):
        (tmp_path / "y").touch()
    (tmp_path / "y").touch()


# Training


def test_training_that_cannot_begin(trouble: Callable, cifar: Cifar, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with trouble(runs):
        done = cifar("train", "--recipe", "demo", "--data", "demo", "--runs", runs)
    one_line(done)
    assert not list(runs.rglob("*.partial"))
    assert not list(runs.rglob("*.pt"))


def test_no_checkpoint_fits_on_the_disk(cifar: Cifar, tmp_path: Path) -> None:
    with full_disk(room=100_000):
        one_line(cifar("train", "--recipe", "demo", "--data", "demo", cwd=tmp_path), "last.pt: File too large")
    assert not list((tmp_path / "runs").iterdir())  # a run without a checkpoint is removed


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_disk_fills_while_training_and_the_run_goes_on_later(how: str, tmp_path: Path, recipe: Recipe) -> None:
    source = colored_source()
    whole = create_run(recipe, stem="whole", root=tmp_path)
    train_epochs(whole, source)
    run = create_run(recipe, stem="run", root=tmp_path)
    train_epochs(run, source, 1)
    before = contents(run.path)
    trouble = full_disk(room=300) if how == "full" else read_only(run.path)
    with pytest.raises(ToolkitError, match="cannot write"), trouble:
        train_epochs(run, source, 1, resume=True)
    after = contents(run.path)
    assert {name: after[name] for name in before if name.endswith(".pt")} == {
        name: content for name, content in before.items() if name.endswith(".pt")
    }
    assert not list(run.path.glob(".*.partial"))
    train_epochs(open_run(str(run.path)), source, resume=True)
    weights, expected = (load_checkpoint(folder.last).weights for folder in (run, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [record["epoch"] for record in run.read_metrics()] == [1, 2, 3]


# Export, pictures of results, samples


@pytest.mark.parametrize("there", [True, False])
def test_export(there: bool, trouble: Callable, case: Case, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    if there:
        output.write_bytes(b"a model that works")
    before = contents(tmp_path)
    message = "cannot write .*model.onnx: (File too large|.* is not a folder that can be written to)"
    with pytest.raises(ToolkitError, match=message), trouble(tmp_path):
        export_onnx(case.checkpoint, output, data=case.source)
    assert contents(tmp_path) == before


def test_evaluate_refuses_a_picture_that_cannot_be_written_before_work_and_prints_its_result_on_a_full_disk(
    trouble: Callable, cifar: Cifar, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = find_data("demo")
    identity = identify_data("demo", source.train())
    values = values_of_a_checkpoint(data=identity, class_names=list(source.class_names))
    (tmp_path / "best.pt").write_bytes(archive(values))
    (tmp_path / "confusion.png").write_bytes(b"an older picture")
    before = contents(tmp_path)
    with trouble(tmp_path):
        done = cifar("evaluate", "best.pt", "--data", "demo", "--plot", "confusion.png", cwd=tmp_path)
    one_line(done, "cannot write confusion.png")
    assert done.stdout.startswith("Accuracy  ") == ("full" in request.node.callspec.id)
    assert contents(tmp_path) == before


def test_samples(trouble: Callable, cifar: Cifar, tmp_path: Path) -> None:
    with trouble(tmp_path):
        one_line(cifar("data", "--data", "demo", "--samples", tmp_path / "samples"), "cannot write")
    assert not list(tmp_path.rglob("*.*"))


# Nothing but a file is replaced by a file


@pytest.mark.parametrize("kind", ["fifo", "socket", "link to a device"])
def test_what_is_no_file_is_not_replaced(kind: str, case: Case, tmp_path: Path) -> None:
    """A superuser who writes to /dev/null must still have one afterwards."""
    output = tmp_path / "out"
    if kind == "fifo":
        os.mkfifo(output)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(output))
    else:
        output.symlink_to("/dev/null")
    before = output.lstat()
    with pytest.raises(ToolkitError, match="ordinary file"), toolkit.files.replacing(output):
        raise AssertionError("not reached")
    with pytest.raises(ToolkitError, match="ordinary file"):
        export_onnx(case.checkpoint, output, data=FixedSource("none", None, ()))  # said before any work
    assert output.lstat().st_ino == before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Standard output, in processes of their own


def process(*arguments: object, stdout: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "cli.py", *map(str, arguments)],
        stdout=stdout,  # type: ignore[arg-type]
        stderr=subprocess.PIPE,
        cwd=cwd,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "x.png", "--model", "model.onnx"],
        ["predict", "x.png", "--model", "model.onnx", "--format", "csv"],
        ["predict", "x.png", "--model", "model.onnx", "--format", "json"],
        ["data", "--data", "demo", "--json"],
        ["bench", "predict", "--model", "model.onnx", "--quick", "--pictures", "1", "--json"],
        ["--version"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_standard_output_on_a_full_disk(arguments: list[str], tmp_path: Path) -> None:
    saved(tmp_path, tiny_model())
    draw(tmp_path / "x.png")
    before = contents(tmp_path)
    with open("/dev/full", "w") as full:
        done = process(*arguments, stdout=full, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert contents(tmp_path) == before


def test_a_pipe_that_is_closed_early(tmp_path: Path) -> None:
    """`cifar predict ... | head -1`."""
    saved(tmp_path, tiny_model())
    draw(tmp_path / "x.png")
    command = [sys.executable, ROOT / "cli.py", "predict", "--model", "model.onnx", "--batch-size", "1"]
    with subprocess.Popen(
        [*command, *["x.png"] * 5000], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith("airplane")
        running.stdout.close()
        errors = running.stderr.read()
        assert running.wait(60) == 1
    assert errors.splitlines()[1:] == []  # the line that names the model, and no other


def test_standard_input_without_an_end(tmp_path: Path) -> None:
    saved(tmp_path, tiny_model())
    with open("/dev/zero") as zeros:
        done = subprocess.run(
            [sys.executable, ROOT / "cli.py", "predict", "-", "--model", "model.onnx"],
            stdin=zeros, capture_output=True, cwd=tmp_path, text=True, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: standard input has more than 268,435,456 bytes" in done.stderr


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    name = os.fsdecode(b"r\xe9sum\xe9")
    saved(tmp_path, tiny_model())
    done = process("data", "--data", "demo", "--samples", name, stdout=subprocess.PIPE, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"sample pictures in r\xe9sum\xe9" in done.stdout
