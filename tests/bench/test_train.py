"""`cifar bench train`: what it measures and prints, and that a variant that fails does not take the others along."""

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

import cli
from toolkit.bench import train as benchmark
from toolkit.bench.train import Row, TrainingBenchmark, Variant, bench_train, variants
from toolkit.display import training_benchmark_lines
from toolkit.errors import UsageError


@pytest.fixture(scope="module")
def result():
    """A quick run of everything that a CPU has, on a handful of images."""
    return bench_train("cpu", batch_sizes=[4], quick=True, images=64)


def test_every_variant_is_measured_beside_the_conventional_loop(result):
    rows = result.rows
    assert rows[0].variant.step == "conventional"
    assert [row.variant for row in rows] == variants(torch.device("cpu"), 4)
    for row in rows:
        assert row.note == ""
        assert len(row.rounds) == 1
        assert row.images_per_second == row.rounds[0] > 0
        assert row.ratio == row.images_per_second / rows[0].images_per_second
        assert row.startup_seconds > 0
        assert row.first_steps_seconds > 0
        assert row.peak_memory > 50e6  # bytes; torch alone takes more


def test_as_json_and_as_a_table(result):
    values = json.loads(json.dumps(result.as_dict()))
    assert values["rows"][0]["variant"]["batch_size"] == 4
    assert values["quick"] is True
    lines = training_benchmark_lines(result).splitlines()
    assert "resnet20, 64 random images" in lines[0]
    assert len(lines) == 3 + len(result.rows)
    assert "conventional loop" in lines[3]
    assert "1.00" in lines[3]


def test_a_variant_that_fails_keeps_its_reason_and_the_others_go_on(monkeypatch):
    broken = Variant(4, "eager", "float99")
    monkeypatch.setattr(benchmark, "variants", lambda *a, **k: [broken, Variant(4, "eager", "float32")])
    rows = bench_train("cpu", batch_sizes=[4], quick=True, images=16).rows
    assert rows[0].images_per_second is None
    assert "float99" in rows[0].note
    assert rows[1].images_per_second > 0
    assert rows[1].ratio is None
    assert "-" in training_benchmark_lines(fixed(rows)).splitlines()[3]


def fixed(rows):
    return TrainingBenchmark(
        device="a device", cores=2, libraries={"torch": "2"}, model="resnet20", images=16, quick=True, seconds=1.0,
        rows=tuple(rows),
    )  # fmt: skip


def test_nothing_is_captured_on_a_cpu():
    assert {v.step for v in variants(torch.device("cpu"), 32)} == {"conventional", "eager"}


def test_a_gpu_gets_every_kind_of_step(monkeypatch):
    monkeypatch.setattr(benchmark, "choose_dtype", lambda precision, device: torch.bfloat16)
    found = [(v.step, v.precision) for v in variants(torch.device("cuda"), 32)]
    assert found == [
        ("conventional", "float32"), ("eager", "float32"), ("eager", "bfloat16"), ("graph", "bfloat16"),
    ]  # fmt: skip


def test_the_median_counts_and_what_there_was_no_time_for_is_said(monkeypatch):
    class Worker:
        def __init__(self, variant, device, **options):
            self.variant, self.speeds, self.rounds = variant, iter([3.0, 1.0, 2.0]), []

        def train(self, seconds):
            self.rounds.append(next(self.speeds))

        def finish(self):
            return Row(self.variant, images_per_second=sorted(self.rounds)[1], rounds=tuple(self.rounds))

        def stop(self):
            pass

    monkeypatch.setattr(benchmark, "_Worker", Worker)
    rows = bench_train("cpu", batch_sizes=[4]).rows
    assert all(row.rounds == (3.0, 1.0, 2.0) and row.images_per_second == 2.0 for row in rows)
    group = benchmark._Group(torch.device("cpu"), images=8, cache="", started=0.0, progress=lambda text: None)
    group.deadline = -1.0
    (row,) = group.measure([Variant(4, "eager", "float32")], quick=True)
    assert dataclasses.asdict(row)["note"] == "time was up"


def test_command_prints_a_table_or_json(monkeypatch):
    asked = {}

    def measured(device, **options):
        asked.update(options, device=device)
        return fixed([Row(Variant(8, "eager", "float32"), images_per_second=1234.5, rounds=(1234.5,))])

    monkeypatch.setattr(benchmark, "bench_train", measured)
    table = CliRunner().invoke(cli.app, ["bench", "train", "--quick", "--batch-size", "8", "--device", "cpu"])
    assert "1,234" in table.stdout
    assert (asked["batch_sizes"], asked["quick"], asked["device"]) == ([8], True, "cpu")
    as_json = CliRunner().invoke(cli.app, ["bench", "train", "--json"])
    assert json.loads(as_json.stdout)["rows"][0]["images_per_second"] == 1234.5
    assert asked["batch_sizes"] == benchmark.BATCH_SIZES


def test_wrong_use():
    with pytest.raises(UsageError, match="a batch has 1 to 16 images, not 17"):
        bench_train("cpu", batch_sizes=[4, 17], images=16)
    assert CliRunner().invoke(cli.app, ["bench", "train", "--device", "gpu"]).exit_code == 2
