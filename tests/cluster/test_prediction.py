"""Pictures in parts: every picture in exactly one part, whatever dies; a repeated command keeps finished parts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.cluster import (
    Disturbed,
    identities,
    kill_last,
    record_processes,
    rows_of,
    slow_pictures,
)
from tests.support.onnx_models import COLORS, draw, saved, tiny_model
from tests.support.serving import wait_until
from tests.support.sources import ROOT
from toolkit.cluster.jobs import run_job
from toolkit.cluster.local_engine import LocalEngine
from toolkit.cluster.prediction import predict_to_folder
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference.pipeline import classify
from toolkit.reporting import ignore

posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), tiny_model())


@pytest.fixture
def folder(tmp_path):
    """Ten pictures."""
    for number in range(10):
        draw(tmp_path / f"pictures/{number:02}.png", [*COLORS][number % 3])
    return tmp_path / "pictures"


def predict(paths, out, model, *, engine=None, part_size=3, **options):
    return predict_to_folder(engine or LocalEngine(2), paths, out, model=model, part_size=part_size, **options)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_each_part_is_what_predict_prints_for_its_pictures(folder, tmp_path, model, cifar, form):
    out = tmp_path / "out"
    progress = []
    result = predict([folder], out, model, format=form, top=2, progress=lambda *values: progress.append(values))
    assert (result.pictures, result.parts, result.kept, list(result.failures())) == (10, 4, 0, [])
    assert progress == [(0, 10), *sorted(progress[1:])]
    assert progress[-1] == (10, 10)
    for number in range(4):
        pictures = sorted(folder.iterdir())[3 * number : 3 * number + 3]
        printed = cifar("predict", *pictures, "--model", model, "--format", form, "--top", 2, "--provider", "cpu")
        assert (out / f"part-0000{number}.{form}").read_text() == printed.stdout


def test_a_repeated_command_keeps_every_part(folder, tmp_path, model):
    out = tmp_path / "out"
    predict([folder], out, model)
    before = identities(out)
    (out / "part-00002.csv").unlink()
    (out / ".part-00002.csv.x.partial").touch()
    assert predict([folder], out, model).kept == 3
    after = identities(out)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"part-00002.csv"}
    assert rows_of(out) == [str(path) for path in sorted(folder.iterdir())]
    assert not list(out.glob(".*.partial"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top": 2}, "which differs in its --top:"),
        ({"format": "jsonl"}, "which differs in its --format:"),
        ({"picture": True}, "which differs in its list of pictures:"),
        ({"model": True}, "which differs in its model:"),
    ],
)
def test_another_command_is_refused_and_changes_nothing(folder, tmp_path, model, change, message):
    out = tmp_path / "out"
    predict([folder], out, model)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    if change.pop("picture", False):
        draw(folder / "new.png")
    if change.pop("model", False):
        model = saved(tmp_path, tiny_model(float_nchw=True))
    with pytest.raises(ToolkitError, match=message):
        predict([folder], out, model, **change)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_parts_without_a_plan_are_refused_and_kept(folder, tmp_path, model):
    out = tmp_path / "out"
    predict([folder], out, model)
    (out / "plan.json").unlink()
    before = identities(out)
    with pytest.raises(ToolkitError, match=r"part-0000\d.csv is a part, but .*plan.json is missing: remove the parts"):
        predict([folder], out, model)
    assert identities(out) == before


def test_bad_pictures_are_listed_beside_their_part(folder, tmp_path, model):
    (folder / "04.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    result = predict([folder, tmp_path / "empty"], out, model)
    empty, bad = list(result.failures())
    assert empty == f"{tmp_path / 'empty'}: no file in this folder has the suffix of a picture"
    assert bad.startswith(f"{folder / '04.png'}: not a picture")
    assert len(rows_of(out)) == 9
    assert json.loads((out / "errors-00001.jsonl").read_text())["path"] == str(folder / "04.png")


def test_names_in_any_bytes(tmp_path, model):
    name = os.fsdecode(b"caf\xe9\n.png")
    draw(tmp_path / "pictures" / name)
    predict([tmp_path / "pictures"], tmp_path / "out", model)
    assert rows_of(tmp_path / "out") == [rf"{tmp_path}/pictures/caf\xe9\n.png"]


def test_relative_paths_are_found_from_anywhere(folder, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(["pictures"], tmp_path / "out", model)
    assert rows_of(tmp_path / "out")[0] == os.path.join("pictures", "00.png")
    monkeypatch.chdir(folder)
    with pytest.raises(ToolkitError, match="working folder"):
        predict(["../pictures"], tmp_path / "out", model)


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (["-"], {}, "standard input cannot be written as parts"),
        (["x.png"], {"format": "table"}, "parts are written as csv or jsonl"),
        (["x.png"], {"top": 11}, "top must lie between"),
        (["x.png"], {"part_size": 0}, "a part holds 1 to 100,000 pictures, not 0"),
    ],
)
def test_wrong_options(tmp_path, model, paths, options, message):
    with pytest.raises(UsageError, match=message):
        predict(paths, tmp_path / "out", model, **options)
    assert not (tmp_path / "out").exists()


@posix
def test_a_killed_process_loses_and_repeats_no_picture(tmp_path, model, monkeypatch):
    pictures = slow_pictures(tmp_path / "pictures", 40)
    processes = record_processes(monkeypatch)
    engine = Disturbed(LocalEngine(2), lambda: kill_last(processes))
    predict([tmp_path / "pictures"], tmp_path / "out", model, engine=engine, part_size=4)
    assert engine.disturbed
    assert len(processes) == 3  # the dead one was replaced
    assert rows_of(tmp_path / "out") == pictures


def predict_command(pictures, out, model):
    return [sys.executable, "cli.py", "predict", str(pictures), "--out", str(out), "--model", str(model)]


@pytest.mark.slow
@posix
def test_the_command_is_killed_and_repeated(tmp_path, model):
    """Without warning, in the middle: its processes end, and the same command completes what is missing."""
    pictures = slow_pictures(tmp_path / "pictures", 3000, side=200)
    out = tmp_path / "out"
    command = predict_command(tmp_path / "pictures", out, model)
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(out.glob("part-*")), seconds=40)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(0.5)
    before = identities(out)
    assert 1 <= len(before) < 3
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == f"{out}: 3 parts, {len(before)} of them from before; 3,000 pictures; 0 errors\n"
    assert before.items() <= identities(out).items()
    assert rows_of(out) == pictures


@posix
def test_ctrl_c_says_how_to_resume(tmp_path, model):
    slow_pictures(tmp_path / "pictures", 3000, side=200)
    out = tmp_path / "out"
    command = predict_command(tmp_path / "pictures", out, model)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(out.glob("part-*")), seconds=40)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "of 3,000 pictures are predicted in" in errors
    assert errors.endswith("Repeat the command to resume: finished parts are kept\n")


def test_options_that_do_not_fit(cifar):
    for arguments, message in (
        (["--on", "local"], "--on needs --out FOLDER"),
        (["--out", "o", "--plot", "x.png"], "--out allows neither --plot nor"),
        (["--out", "o", "--provider", "cuda"], "--out allows neither --plot nor"),
    ):
        done = cifar("predict", "x.png", *arguments)
        assert done.returncode == 2
        assert message in done.stderr


class InlineEngine:
    """Runs jobs in this process, one after the other."""

    def run(self, jobs, *, on_wait=ignore):
        yield from map(run_job, jobs)


def test_each_part_is_predicted_in_batches_of_the_given_size(folder, tmp_path, model, monkeypatch):
    sizes = []

    def record(*arguments, batch_size, **options):
        sizes.append(batch_size)
        return classify(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr("toolkit.cluster.prediction.classify", record)
    predict([folder], tmp_path / "out", model, engine=InlineEngine(), batch_size=2)
    assert sizes == [2, 2, 2, 2]
    with pytest.raises(UsageError, match="the batch size must lie between 1 and"):
        predict([folder], tmp_path / "out", model, engine=InlineEngine(), batch_size=0)
