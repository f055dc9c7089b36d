"""`cifar bench train`: the sides of each device, a quick run on a few images, and wrong use."""

import json

import pytest
import torch

from toolkit.bench import train as benchmark
from toolkit.bench.result import BenchmarkResult, Result, Side
from toolkit.bench.train import bench_train, list_sides
from toolkit.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result() -> BenchmarkResult:
    """The conventional loop and one step of the toolkit on a handful of images."""
    both = list_sides(torch.device("cpu"), 4, images=16)[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "list_sides", lambda *args, **options: both)
        patch.setattr(benchmark, "QUICK_SECONDS", 0.01)
        return bench_train("cpu", batch_sizes=[4], quick=True, images=16)


def test_every_step_is_measured_beside_the_conventional_loop(result):
    assert [r.side.name for r in result.results] == ["conventional loop", "eager, float32"]
    for side in result.results:
        assert side.note == ""
        (timing,) = side.timings
        assert timing.batch_size == 4
        assert timing.images_per_second == timing.rounds[0] > 0
        assert timing.ratio == timing.images_per_second / result.results[0].timings[0].images_per_second
        assert 0 < side.start_seconds < 120
        assert side.figures["first_steps_seconds"] > 0
        assert side.memory is None or side.memory > 50e6  # bytes; torch alone takes more
    assert result.settings == {"model": "resnet20", "images": 16, "quick": True}


def test_a_note_names_the_batch_size(monkeypatch):
    side = Side("eager", "worker", {})
    monkeypatch.setattr(benchmark, "measure", lambda *args, **options: [Result(side, note="failed")])
    notes = [r.note for r in bench_train("cpu", batch_sizes=[4, 8], images=16).results]
    assert notes == ["batch 4: failed", "batch 8: failed"]


def test_sides_of_a_cpu_are_not_captured():
    assert {side.options["step"] for side in list_sides(torch.device("cpu"), 32)} == {"conventional", "eager"}


def test_sides_of_a_gpu(monkeypatch):
    monkeypatch.setattr(benchmark, "choose_dtype", lambda precision, device: torch.bfloat16)
    found = [side.name for side in list_sides(torch.device("cuda"), 32)]
    assert found == ["conventional loop", "eager, float32", "eager, bfloat16", "graph, bfloat16"]


def test_command_prints_a_table_or_json(cifar, result, monkeypatch):
    asked = {}

    def measured(device, **options):
        asked.update(options, device=device)
        return result

    monkeypatch.setattr(benchmark, "bench_train", measured)
    table = cifar("bench", "train", "--quick", "--batch-size", 8, "--device", "cpu")
    assert "conventional loop" in table.stdout
    assert (asked["batch_sizes"], asked["quick"], asked["device"]) == ([8], True, "cpu")
    assert json.loads(cifar("bench", "train", "--json").stdout) == json.loads(json.dumps(result.as_dict()))
    assert asked["batch_sizes"] == benchmark.BATCH_SIZES


def test_wrong_use(cifar):
    with pytest.raises(UsageError, match="a batch has 1 to 16 images, not 17"):
        bench_train("cpu", batch_sizes=[4, 17], images=16)
    assert cifar("bench", "train", "--device", "gpu").returncode == 2
