"""`cifar bench deploy`: what it measures, prints and draws, and that a side that fails leaves the others alone."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from models import build_model
from tests.support.deploy import randomise, source_for, write_checkpoint
from tests.support.onnx_models import saved
from tests.support.onnx_models import tiny_model as tiny_onnx
from toolkit.bench import deploy as benchmark
from toolkit.bench.deploy import DeploymentBenchmark, Side, bench_deploy, sides
from toolkit.display import deployment_benchmark_lines
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.plots import plot_deployment


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    network = randomise(build_model("resnet20"))
    checkpoint = write_checkpoint(folder / "best.pt", network, source_for(network, test=1), model="resnet20")
    return saved(folder, tiny_onnx()), checkpoint


@pytest.fixture(scope="module")
def result(files: tuple[Path, Path]) -> DeploymentBenchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "QUICK_SECONDS", 0.001)
        return bench_deploy([files[0]], checkpoint=files[1], batch_sizes=[1, 3], quick=True)


def test_each_side_is_timed_at_each_batch_size(result: DeploymentBenchmark) -> None:
    kinds = [item.side.kind for item in result.sides if item.side.place == "cpu"]
    assert kinds == ["onnx", "bare", "eager"]
    for item in result.sides:
        assert item.note == ""
        assert item.file_bytes == Path(item.side.file).stat().st_size
        assert item.start_ms is not None
        assert item.start_ms > 0
        assert item.memory is None or item.memory >= 0
        assert [timing.batch_size for timing in item.timings] == [1, 3]
        for timing, reference in zip(item.timings, result.sides[0].timings, strict=True):
            assert timing.calls >= 3
            assert 0 < timing.p50_ms <= timing.p95_ms <= timing.p99_ms
            assert timing.images_per_second == timing.rounds[0]
            assert timing.ratio == timing.images_per_second / reference.images_per_second


def test_as_json_table_and_picture(result: DeploymentBenchmark, tmp_path: Path) -> None:
    values = json.loads(json.dumps(result.as_dict()))
    assert values["sides"][0]["side"]["kind"] == "onnx"
    text = deployment_benchmark_lines(result)
    assert text.count("model.onnx, cpu, bare session") == 3  # the side itself, and two batch sizes
    assert "1.00" in text
    plot_deployment(result, tmp_path / "bench.png")
    assert Image.open(tmp_path / "bench.png").format == "PNG"


def test_a_side_that_fails_keeps_its_reason_and_the_others_go_on(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Side("onnx", str(files[0]), "nowhere")
    monkeypatch.setattr(benchmark, "sides", lambda *a, **k: ([broken, Side("onnx", str(files[0]), "cpu")], []))
    result = bench_deploy([files[0]], batch_sizes=[2], quick=True)
    assert result.sides[0].timings == ()
    assert "unknown provider" in result.sides[0].note
    assert result.sides[1].timings[0].ratio is None
    assert "unknown provider" in deployment_benchmark_lines(result)


def test_what_is_compared(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, checkpoint = files
    monkeypatch.setattr(benchmark, "_other_providers", lambda model, notes: ["cuda"])
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    found, _ = sides([model], checkpoint)
    assert [(side.kind, side.place) for side in found] == [
        ("onnx", "cpu"), ("bare", "cpu"), ("onnx", "cuda"), ("eager", "cpu"), ("compiled", "cpu"),
    ]  # fmt: skip
    monkeypatch.setattr(benchmark, "SHIPPED_CHECKPOINT", tmp_path / "none.pt")
    found, notes = sides([model], None)
    assert not any(side.kind == "eager" for side in found)
    assert "PyTorch: not measured" in notes[0]


def test_accuracy_where_the_data_fit(
    files: tuple[Path, Path], result: DeploymentBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, checkpoint = (str(path) for path in files)
    compared = [Side("onnx", model, "cpu"), Side("bare", model, "cpu"), Side("eager", checkpoint, "cpu")]
    found, notes = benchmark._accuracies(compared, "/no/such/folder", print)
    assert found == {}
    assert "accuracy: not measured, no CIFAR-10" in notes[0]
    asked = []

    def evaluated(path: Path, *, source: object, **place: str) -> object:
        asked.append((str(path), place))
        return type("M", (), {"accuracy": 0.9123})

    monkeypatch.setattr(benchmark, "evaluate", evaluated)
    found, notes = benchmark._accuracies(compared, "demo", lambda text: None)
    assert (found, notes) == ({model: 0.9123, checkpoint: 0.9123}, [])
    assert asked == [(model, {"provider": "cpu"}), (checkpoint, {"device": "cpu"})]
    shown = dataclasses.replace(result, sides=(dataclasses.replace(result.sides[0], accuracy=0.9123),))
    assert "91.23%" in deployment_benchmark_lines(shown)


def test_command(cifar, result: DeploymentBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def measured(models: list[Path], **options: object) -> DeploymentBenchmark:
        asked.update(options, models=models)
        return result

    monkeypatch.setattr(benchmark, "bench_deploy", measured)
    done = cifar("bench", "deploy", "a.onnx", "b.onnx", "--quick", "--batch-size", 4, "--plot", tmp_path / "b.png")
    assert "p99 ms" in done.stdout
    assert (asked["models"], asked["batch_sizes"], asked["quick"]) == ([Path("a.onnx"), Path("b.onnx")], [4], True)
    assert (tmp_path / "b.png").is_file()
    assert json.loads(cifar("bench", "deploy", "--json").stdout)["batch_sizes"] == [1, 3]
    assert asked["models"] == []


def test_wrong_use(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch has 1 to 4096 images, not 0"):
        bench_deploy([files[0]], batch_sizes=[0])
    with pytest.raises(ToolkitError, match="no checkpoint at"):
        bench_deploy([files[0]], checkpoint=tmp_path / "none.pt", batch_sizes=[1])
    with pytest.raises(ToolkitError, match="cannot be opened"):
        bench_deploy([tmp_path / "none.onnx"], batch_sizes=[1])
