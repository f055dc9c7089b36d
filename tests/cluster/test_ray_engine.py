"""Jobs on a Ray cluster whose machines die without warning."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.cluster import (
    Disturbed,
    identities,
    outcomes,
    rows_of,
    slow_pictures,
    tiny_data,
    tiny_recipe,
)
from tests.support.jobs import die, divide_by_zero, write_line
from tests.support.onnx_models import saved, tiny_model
from tests.support.ray_nodes import has_open, kill_node
from tests.support.training import same_weights, train_epochs, weights_of
from toolkit.cluster.engines import open_prediction_engine, open_training_engine
from toolkit.cluster.jobs import Job, Outcome
from toolkit.cluster.prediction import predict_to_folder
from toolkit.cluster.ray_engine import RayEngine, count_gpus
from toolkit.cluster.training import train_seeds
from toolkit.data.dataset import find_data
from toolkit.errors import UsageError
from toolkit.runs.seeds import begin_seeds
from toolkit.training.launch import LaunchOptions


def test_an_address_without_a_cluster(cifar, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    done = cifar("predict", "x.png", "--out", tmp_path / "out", "--on", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr == (
        "error: no Ray cluster is reached at 127.0.0.1:1: [Errno 111] Connection refused. `ray status` on its head "
        "shows its state; `--on local` uses this machine\n"
    )


def test_a_cluster_that_refuses_the_connection(cifar, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")

    def refuse(*arguments, **options):
        raise ConnectionError("Failed to connect\nwith details")

    monkeypatch.setattr(ray, "init", refuse)
    done = cifar("predict", "x.png", "--out", tmp_path / "out", "--on", "auto")
    assert done.returncode == 1
    assert done.stderr == (
        "error: no Ray cluster is reached at auto: Failed to connect. `ray status` on its head shows its state; if it "
        "requires a token, set RAY_AUTH_MODE=token and copy ~/.ray/auth_token; `--on local` uses this machine\n"
    )


def test_without_ray_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UsageError, match=r'`--on ray` needs ray: install the extra with `pip install "cifar\[cluster\]"`'
    ):
        open_prediction_engine("ray")


@pytest.mark.slow
def test_jobs_that_fail_for_good_fail_alone(ray_cluster, tmp_path):
    engine = RayEngine(ray_cluster.address, retries=1)
    jobs = [
        Job("good", write_line, {"path": str(tmp_path / "good"), "line": "x"}),
        Job("bad", divide_by_zero, {}),
        Job("deadly", die, {}),
    ]
    found = outcomes(engine, jobs)
    assert found["good"] == Outcome("good")
    assert found["bad"] == Outcome("bad", "ZeroDivisionError: by zero")
    assert "WorkerCrashedError" in found["deadly"].error
    endless = (Job(f"{number}", write_line, jobs[0].arguments) for number in itertools.count())
    running = engine.run(endless)
    assert [next(running).error for _ in range(3)] == [None] * 3
    running.close()
    assert count_gpus(ray_cluster.address) == 0


@pytest.mark.slow
def test_prediction_survives_the_death_of_a_node(ray_cluster, tmp_path):
    """All pictures exactly once; a command repeated after an interruption keeps every finished part."""
    pictures = slow_pictures(tmp_path / "pictures", 36, side=1500)
    model = saved(tmp_path, tiny_model())
    out = tmp_path / "out"

    def predict(engine):
        return predict_to_folder(engine, [tmp_path / "pictures"], out, model=model, part_size=3)

    engine = RayEngine(ray_cluster.address)
    with pytest.raises(KeyboardInterrupt, match="Repeat the command to resume"):
        predict(Disturbed(engine, interrupt))
    before = identities(out)
    assert 1 <= len(before) < 12
    disturbed = Disturbed(engine, lambda: kill_node(ray_cluster, running=lambda pid: True))
    result = predict(disturbed)
    assert disturbed.disturbed
    assert (result.parts, result.pictures) == (12, 36)
    assert rows_of(out) == pictures
    assert before.items() <= identities(out).items()
    finished = identities(out)
    assert predict(engine).kept == 12
    assert identities(out) == finished


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_training_survives_the_death_of_a_node_bit_by_bit(ray_cluster, tmp_path):
    """A node is killed between the first and the last epoch of the seed that it trains."""
    source = find_data(str(tiny_data(tmp_path / "data")))

    def begin(root):
        return begin_seeds(tiny_recipe(8), seeds=2, source=source, name="seeds", root=tmp_path / root)

    runs = begin("runs").runs

    def trains(pid):
        return any(has_open(pid, run.path / ".lock") and 1 <= len(run.read_metrics()) < 8 for run in runs)

    engine = open_training_engine(ray_cluster.address, device="cpu", gpu_share=0.25)
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_node, ray_cluster, running=trains)
        train_seeds(engine, runs, source=source, options=LaunchOptions(device="cpu"))
        killed.result()
    for run, alone in zip(runs, begin("alone").runs, strict=True):
        train_epochs(alone, source)
        assert [record["epoch"] for record in run.read_metrics()] == list(range(1, 9))
        assert same_weights(weights_of(run.last), weights_of(alone.last))
        assert same_weights(weights_of(run.best), weights_of(alone.best))
