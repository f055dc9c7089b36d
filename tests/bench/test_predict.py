"""`cifar bench predict`: a quick run on a tiny model, its figures, and the bare script that it compares with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.onnx_models import saved, tiny_model
from tests.support.sources import ROOT
from toolkit.bench import predict as benchmark
from toolkit.bench.predict import bench_predict, derive_figures, draw_pictures, require_timings
from toolkit.bench.result import BenchmarkResult, Result, Side, Timing
from toolkit.errors import ToolkitError, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), tiny_model())


@pytest.fixture(scope="module")
def result(model: Path) -> BenchmarkResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "QUICK_ROUNDS", (1, 1))
        patch.setattr(benchmark, "QUICK_RUNTIME_SECONDS", 0.01)
        return bench_predict(model, pictures=70, quick=True)


def test_each_side_is_timed(result: BenchmarkResult) -> None:
    assert [(r.side.name, r.timings[0].batch_size) for r in result.results] == [
        ("one picture, bare script", 1), ("one picture, cifar predict", 1),
        ("folder, ONNX Runtime alone", 64), ("folder, bare script", 64), ("folder, cifar predict", 64),
    ]  # fmt: skip
    for side in result.results:
        (timing,) = side.timings
        assert timing.images_per_second == timing.rounds[0] > 0
        base = result.results[0 if timing.batch_size == 1 else 2].timings[0]
        assert timing.ratio == timing.images_per_second / base.images_per_second
        if side.side.worker.endswith("program_worker"):
            pictures = 1 if timing.batch_size == 1 else 70
            assert timing.images_per_second == pytest.approx(1e3 * pictures / timing.p50_ms)
            assert side.memory is None or side.memory > 10e6  # bytes
    assert result.settings == {"model": "model.onnx", "pictures": 70, "quick": True}
    assert result.figures == derive_figures(result.results[:2], result.results[2:], 70)


def test_json_holds_no_path_of_this_machine(result: BenchmarkResult, model: Path) -> None:
    text = json.dumps(result.as_dict())
    assert [path for path in (str(model.parent), str(ROOT), sys.prefix, "cifar-bench-") if path in text] == []


def side_of(speed: float) -> Result:
    return Result(Side("", "", {}), (Timing(1, speed, (speed,)),))


def test_figures() -> None:
    single = [side_of(4.0), side_of(2.0)]  # `cifar predict` takes half a second for one picture
    whole = [side_of(100.0), side_of(20.0), side_of(40.0)]
    # 100 pictures: 2.5 s in all, 2 s after the start; ONNX Runtime alone takes 1 s
    assert derive_figures(single, whole, 100) == {"speedup": 2.0, "ratio_after_start": 0.5}


def test_a_program_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(ToolkitError, match="cifar predict: no memory"):
        require_timings([side_of(1.0), Result(Side("cifar predict", "", {}), note="no memory")])


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


def test_command(cifar, result: BenchmarkResult, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def measured(model: str | None, **options: object) -> BenchmarkResult:
        asked.update(options, model=model)
        return result

    monkeypatch.setattr(benchmark, "bench_predict", measured)
    done = cifar("bench", "predict", "--quick", "--model", "m.onnx", "--pictures", 9)
    assert "folder, ONNX Runtime alone" in done.stdout
    assert (asked["model"], asked["pictures"], asked["quick"]) == ("m.onnx", 9, True)
    assert json.loads(cifar("bench", "predict", "--json").stdout) == json.loads(json.dumps(result.as_dict()))


def test_wrong_use(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 picture, not 0"):
        bench_predict(model, pictures=0)
    with pytest.raises(ToolkitError, match="uint8-nhwc"):
        bench_predict(saved(tmp_path, tiny_model(float_nchw=True)), pictures=1)
