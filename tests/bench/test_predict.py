"""`cifar bench predict`: what it measures and prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.onnx_models import saved, tiny_model
from tests.support.sources import ROOT
from toolkit.bench import predict as benchmark
from toolkit.bench.predict import bench_predict, draw_pictures
from toolkit.display import prediction_benchmark_lines
from toolkit.errors import ToolkitError, UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), tiny_model())


@pytest.fixture(scope="module")
def result(model: Path) -> benchmark.PredictionBenchmark:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "QUICK_ROUNDS", (1, 1))
        return bench_predict(model, pictures=70, quick=True)


def test_each_side_is_timed(result: benchmark.PredictionBenchmark) -> None:
    for program in (result.single, result.single_bare, result.folder, result.folder_bare):
        assert program.seconds == program.rounds[0] > 0
        assert program.peak_memory is None or program.peak_memory > 10e6  # bytes
    assert result.single_ratio == result.single.seconds / result.single_bare.seconds
    assert result.pictures_per_second == pytest.approx(70 / result.folder.seconds)
    assert result.share == pytest.approx(result.pictures_per_second / result.runtime_pictures_per_second)
    assert result.share_after_start > result.share
    assert result.speedup == pytest.approx(result.pictures_per_second / result.bare_pictures_per_second)


def test_as_json_and_as_a_table(result: benchmark.PredictionBenchmark) -> None:
    values = json.loads(json.dumps(result.as_dict()))
    assert (values["pictures"], values["quick"]) == (70, True)
    lines = prediction_benchmark_lines(result).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "one picture, whole process", "bare script", "cifar predict",
        "70 pictures", "ONNX Runtime by itself, batch 64", "one at a time", "cifar predict",
        "cifar predict without its start",
    ]  # fmt: skip
    assert "100%" in lines[5]


def test_the_bare_script_does_what_the_example_does(model: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path, 3)
    Image.new("RGBA", (50, 40), (200, 10, 10, 128)).save(tmp_path / "clear.png")
    pictures = sorted(map(str, tmp_path.iterdir()))
    example = subprocess.check_output([sys.executable, ROOT / "examples" / "onnx_only.py", model, *pictures])
    assert subprocess.check_output([sys.executable, "-P", benchmark.BARE, model, *pictures]) == example
    assert subprocess.check_output([sys.executable, "-P", benchmark.BARE, model, tmp_path]) == example


def test_the_pictures_are_always_the_same(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        draw_pictures(tmp_path / name, 2)
    assert (tmp_path / "a/00001.png").read_bytes() == (tmp_path / "b/00001.png").read_bytes()
    assert Image.open(tmp_path / "a/00000.png").size == (32, 32)


def test_command(cifar, result: benchmark.PredictionBenchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def measured(model: str | None, **options: object) -> benchmark.PredictionBenchmark:
        asked.update(options, model=model)
        return result

    monkeypatch.setattr(benchmark, "bench_predict", measured)
    assert "one at a time" in cifar("bench", "predict", "--quick", "--model", "m.onnx", "--pictures", 9).stdout
    assert (asked["model"], asked["pictures"], asked["quick"]) == ("m.onnx", 9, True)
    assert json.loads(cifar("bench", "predict", "--json").stdout)["pictures"] == 70


def test_wrong_use(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 picture, not 0"):
        bench_predict(model, pictures=0)
    with pytest.raises(ToolkitError, match="uint8-nhwc"):
        bench_predict(saved(tmp_path, tiny_model(float_nchw=True)), pictures=1)
