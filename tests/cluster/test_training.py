"""Seeds as jobs: the weights of undisturbed runs, whatever dies; failures and interruptions."""

import json
import shlex
import signal
import subprocess
import sys

import pytest

from tests.support.cluster import Disturbed, kill_last, record_processes, tiny_data, tiny_recipe
from tests.support.pictures import write_colored_folder
from tests.support.serving import wait_until
from tests.support.sources import ROOT
from tests.support.training import same_weights, train_epochs, weights_of
from toolkit.cluster.local_engine import LocalEngine
from toolkit.cluster.training import train_seeds
from toolkit.data.dataset import find_data
from toolkit.errors import ToolkitError
from toolkit.runs.seeds import begin_seeds
from toolkit.training.launch import LaunchOptions

posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
CPU = LaunchOptions(device="cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield find_data(str(tiny_data(tmp_path_factory.mktemp("data"))))


def begin(source, root, *, seeds=2, epochs=4):
    return begin_seeds(tiny_recipe(epochs), seeds=seeds, source=source, name="seeds", root=root)


def same_as_undisturbed(seed_runs, source, root):
    for run, alone in zip(seed_runs.runs, begin(source, root, seeds=seed_runs.n).runs, strict=True):
        records = train_epochs(alone, source)
        assert [record["epoch"] for record in run.read_metrics()] == [record.epoch for record in records]
        for name in ("best", "last"):
            assert same_weights(weights_of(getattr(run, name)), weights_of(getattr(alone, name)))


@pytest.mark.slow
@posix
def test_seeds_survive_the_death_of_a_process_bit_by_bit(source, tmp_path, monkeypatch):
    seed_runs = begin(source, tmp_path / "runs")
    processes = record_processes(monkeypatch)
    second = seed_runs.runs[1]
    engine = Disturbed(LocalEngine(2), lambda: kill_last(processes), when=lambda: len(second.read_metrics()) >= 1)
    progress = []
    train_seeds(engine, seed_runs.runs, source=source, options=CPU, progress=lambda *values: progress.append(values))
    assert engine.disturbed
    assert len(processes) in (2, 3)  # a process that is idle by then takes the job, else a new one
    assert (progress[0], progress[-1]) == ((0, 8), (8, 8))
    same_as_undisturbed(seed_runs, source, tmp_path / "alone")
    assert seed_runs.write_summary()["n"] == 2


@pytest.mark.slow
def test_a_seed_that_fails_fails_alone_and_is_named(source, tmp_path):
    seed_runs = begin(source, tmp_path / "runs", epochs=1)
    seed_runs.runs[0].last.write_bytes(b"damaged")
    with pytest.raises(ToolkitError, match=r"1 of 2 seeds failed: seed0 \(.*last\.pt.*The others are finished; repeat"):
        train_seeds(LocalEngine(2), seed_runs.runs, source=source, options=CPU)
    assert [run.is_finished for run in seed_runs.runs] == [False, True]


@pytest.mark.slow
def test_a_finished_seed_is_left_alone(source, tmp_path):
    seed_runs = begin(source, tmp_path / "runs", seeds=1, epochs=1)
    train_seeds(LocalEngine(1), seed_runs.runs, source=source, options=CPU)
    before = seed_runs.runs[0].summary.stat().st_mtime_ns
    train_seeds(LocalEngine(1), seed_runs.runs, source=source, options=CPU)
    assert seed_runs.runs[0].summary.stat().st_mtime_ns == before


@pytest.mark.slow
@posix
def test_the_command_interrupted_and_resumed_gives_the_summary_of_seeds(source, tmp_path):
    (tmp_path / "tiny.toml").write_text(tiny_recipe(6).as_toml())
    arguments = ["--recipe", "tiny.toml", "--data", str(source.folder), "--device", "cpu"]
    command = [sys.executable, ROOT / "cli.py", "train", *arguments, "--seeds", "2", "--on", "local"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/tiny-resnet20-seeds/seed0/metrics.jsonl"
    wait_until(metrics.exists, seconds=50)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    finished = len(list(tmp_path.glob("runs/tiny-resnet20-seeds/seed*/summary.json")))  # usually 0
    assert f"{finished} of 2 seeds are finished, and the completed epochs of the others are kept" in errors
    again = shlex.split(errors.split("Resume with: ")[1])
    assert again[:4] == ["cifar", "train", "--seeds", "2"]
    assert again[-2:] == ["--on", "local"]
    resumed = [sys.executable, ROOT / "cli.py", *again[1:], "--json"]
    done = subprocess.run(resumed, cwd=tmp_path, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert (summary["folder"], summary["n"], summary["epochs"]) == ("runs/tiny-resnet20-seeds", 2, 6)
    assert json.loads((tmp_path / "runs/tiny-resnet20-seeds/seeds.json").read_text()) | summary == summary
    assert "seed0: finished" in done.stderr
    assert "12 of 12 epochs" in done.stderr


@pytest.mark.slow
def test_seeds_of_pictures_skip_damaged_ones_and_record_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_colored_folder(tmp_path / "pets", {"train/cat": 9, "train/dog": 9, "test/cat": 4, "test/dog": 4})
    (folder / "train/cat/broken.png").write_bytes(b"no picture")
    seed_runs = begin(find_data(str(folder), skip_damaged=True), tmp_path / "runs", epochs=1)
    source = find_data(str(folder), skip_damaged=True)
    train_seeds(LocalEngine(2), seed_runs.runs, source=source, options=CPU)
    for run in seed_runs.runs:
        assert [entry["path"] for entry in run.read_summary()["findings"]["skipped"]] == ["train/cat/broken.png"]


def test_options_that_do_not_fit(cifar, tmp_path):
    done = cifar("train", "--recipe", "demo", "--data", "demo", "--on", "local", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --on trains several seeds at once: give their number with --seeds N\n",
    )
    done = cifar(
        "train", "--recipe", "demo", "--data", "demo", "--seeds", 2, "--on", "local", "--gpu-share", 0, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "the share of a GPU must lie above 0" in done.stderr
