"""`cifar bench deploy`: its sides, a quick run on tiny models, accuracies, and the picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import build_model
from tests.support.deploy import randomize, source_for, write_checkpoint
from tests.support.onnx_models import picture_model, saved
from tests.support.onnx_models import tiny_model as tiny_onnx
from toolkit.bench import deploy as benchmark
from toolkit.bench.deploy import bench_deploy, list_sides, measure_accuracies
from toolkit.bench.deploy_worker import import_onnx
from toolkit.bench.harness import measure
from toolkit.bench.result import BenchmarkResult
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.plots import plot_deployment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An ONNX file and a checkpoint."""
    folder = tmp_path_factory.mktemp("files")
    network = randomize(build_model("resnet20"))
    checkpoint = write_checkpoint(folder / "best.pt", network, source_for(network, test=1), model="resnet20")
    return saved(folder, tiny_onnx()), checkpoint


@pytest.fixture(scope="module")
def result(files: tuple[Path, Path]) -> BenchmarkResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "QUICK_SECONDS", 0.001)
        return bench_deploy([files[0]], checkpoint=files[1], batch_sizes=[1, 3], quick=True)


def test_each_side_is_timed_at_each_batch_size(result: BenchmarkResult) -> None:
    kinds = [item.side.options["kind"] for item in result.results if item.side.options["place"] == "cpu"]
    assert kinds == ["onnx", "bare", "eager"]
    for item in result.results:
        assert item.note == ""
        assert item.figures == {"file_bytes": Path(item.side.options["file"]).stat().st_size}
        assert item.start_seconds is not None
        assert 0 < item.start_seconds < 60
        assert item.memory is None or item.memory >= 0
        assert [timing.batch_size for timing in item.timings] == [1, 3]
        for timing, reference in zip(item.timings, result.results[0].timings, strict=True):
            assert timing.calls >= 3
            assert timing.p50_ms is not None
            assert timing.p95_ms is not None
            assert timing.p99_ms is not None
            assert 0 < timing.p50_ms <= timing.p95_ms <= timing.p99_ms
            assert timing.images_per_second == timing.rounds[0]
            assert timing.ratio == timing.images_per_second / reference.images_per_second


def test_the_picture_is_a_png_file(result: BenchmarkResult, tmp_path: Path) -> None:
    plot_deployment(result, tmp_path / "bench.png")
    assert Image.open(tmp_path / "bench.png").format == "PNG"


def test_a_side_that_fails_keeps_its_reason(files: tuple[Path, Path]) -> None:
    side = benchmark._side("onnx", files[0], "nowhere", name=files[0].name)
    (failed,) = measure([side], [2], rounds=1, seconds=0)
    assert failed.timings == ()
    assert "unknown provider" in failed.note


def test_what_is_compared(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, checkpoint = files
    monkeypatch.setattr(benchmark, "_find_providers", lambda model: (["cuda"], []))
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    found, _ = list_sides([model], checkpoint)
    assert [side.name for side in found] == [
        "model.onnx, cpu", "model.onnx, cpu, bare session", "model.onnx, cuda",
        "PyTorch eager, cpu", "PyTorch compiled, cpu",
    ]  # fmt: skip
    monkeypatch.setattr(benchmark, "SHIPPED_CHECKPOINT", tmp_path / "none.pt")
    found, notes = list_sides([model], None)
    assert not any(side.options["kind"] == "eager" for side in found)
    assert "PyTorch: not measured" in notes[0]


def test_a_model_of_pictures_is_timed_without_a_bare_session(files: tuple[Path, Path], tmp_path: Path) -> None:
    path = saved(tmp_path, picture_model())
    found, _ = list_sides([path], files[1], quick=True)
    assert [side.name for side in found] == ["model.onnx, cpu", "PyTorch eager, cpu"]
    call = import_onnx(found[0].options)()
    assert [output.shape for output in call(np.zeros((3, 32, 32, 3), np.uint8))] == [(3, 10), (3, 10)]


def test_accuracy_where_there_are_data(
    files: tuple[Path, Path], result: BenchmarkResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, checkpoint = map(str, files)
    compared = [item.side for item in result.results]
    found, notes = measure_accuracies(compared, "/no/such/folder", print)
    assert found == {}
    assert "accuracy: not measured, no CIFAR-10" in notes[0]
    asked = []

    def load(path: Path, **place: str) -> Path:
        asked.append((str(path), place))
        return path

    def evaluate(path: Path, *, source: object, device: str) -> object:
        return type("M", (), {"accuracy": 0.9123})

    monkeypatch.setattr(benchmark, "load_model", load)
    monkeypatch.setattr(benchmark, "evaluate", evaluate)
    found, notes = measure_accuracies(compared, "demo", print)
    assert (found, notes) == ({model: 0.9123, checkpoint: 0.9123}, [])
    assert asked == [(model, {"provider": "cpu"}), (checkpoint, {})]


def test_command(cifar, result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def measured(models: list[Path], **options: object) -> BenchmarkResult:
        asked.update(options, models=models)
        return result

    monkeypatch.setattr(benchmark, "bench_deploy", measured)
    done = cifar("bench", "deploy", "a.onnx", "b.onnx", "--quick", "--batch-size", 4, "--plot", tmp_path / "b.png")
    assert "p99 ms" in done.stdout
    assert (asked["models"], asked["batch_sizes"], asked["quick"]) == ([Path("a.onnx"), Path("b.onnx")], [4], True)
    assert (tmp_path / "b.png").is_file()
    assert json.loads(cifar("bench", "deploy", "--json").stdout) == json.loads(json.dumps(result.as_dict()))
    assert asked["models"] == []


def test_wrong_use(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch has 1 to 4096 images, not 0"):
        bench_deploy([files[0]], batch_sizes=[0])
    with pytest.raises(ToolkitError, match="no checkpoint at"):
        bench_deploy([files[0]], checkpoint=tmp_path / "none.pt", batch_sizes=[1])
    with pytest.raises(ToolkitError, match="cannot be opened"):
        bench_deploy([tmp_path / "none.onnx"], batch_sizes=[1])
