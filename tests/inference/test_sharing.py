"""Processes that predict for `cifar predict`: the same results in the same order, whatever dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.onnx_models import COLORS, draw, saved, tiny_model
from tests.support.sources import ROOT
from toolkit.inference import Classifier, Failure, Prediction, pipeline, sharing
from toolkit.inference.sharing import PredictionProcesses


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(saved(tmp_path_factory.mktemp("model"), tiny_model()), "cpu", threads=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [draw(folder / f"{number:03}.png", [*COLORS][number % 3]) for number in range(200)]


@pytest.fixture
def from_fifty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PROCESSES_FROM", 50)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[PredictionProcesses]:
    """All that is started, each ready before its first picture."""
    found: list[PredictionProcesses] = []
    enter = PredictionProcesses.__enter__

    def entering(self: PredictionProcesses) -> PredictionProcesses:
        found.append(self)
        enter(self)
        deadline = time.monotonic() + 30
        while self._idle.qsize() < self._count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    monkeypatch.setattr(PredictionProcesses, "__enter__", entering)
    return found


@pytest.mark.usefixtures("from_fifty")
def test_the_results_are_those_of_threads(
    classifier: Classifier, pictures: list[str], started: list[PredictionProcesses], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(Path(pictures[0]).read_bytes()[:60])
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(Path(pictures[0]).read_bytes())
    paths = [*pictures[:70], str(tmp_path / "bad.png"), *pictures[70:], str(tmp_path / "missing.png"), str(tmp_path)]
    here = list(classifier.stream(paths, top=3))
    assert list(classifier.stream(paths, top=3, processes=True)) == here
    assert [type(result) for result in here].count(Failure) == 3
    assert len(started) == 1


@pytest.mark.usefixtures("from_fifty")
def test_the_processes_do_predict(
    classifier: Classifier, pictures: list[str], started: list[PredictionProcesses], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[int] = []
    predict = PredictionProcesses.predict

    def counting(self: PredictionProcesses, several: list[str], top: int) -> list[Prediction | None] | None:
        result = predict(self, several, top)
        shares.append(len(several) if result is not None else 0)
        return result

    monkeypatch.setattr(PredictionProcesses, "predict", counting)
    assert len(list(classifier.stream(pictures, processes=True))) == 200
    assert sum(shares) >= 16


def test_few_pictures_start_no_process(
    classifier: Classifier, pictures: list[str], started: list[PredictionProcesses]
) -> None:
    assert len(list(classifier.stream(pictures, processes=True))) == 200
    assert not started


def test_few_pictures_load_nothing_for_processes(pictures: list[str]) -> None:
    code = (
        "import sys; from toolkit.inference import Classifier\n"
        f"list(Classifier(provider='cpu').stream({pictures[:3]!r}, processes=True))\n"
        "assert not {'toolkit.inference.sharing', 'toolkit.processes', 'multiprocessing'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.usefixtures("from_fifty")
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_process_costs_no_picture(
    classifier: Classifier, pictures: list[str], started: list[PredictionProcesses]
) -> None:
    results = classifier.stream(pictures, processes=True)
    some = [next(results) for _ in range(3)]
    os.kill(started[0]._processes[0].pid, signal.SIGKILL)
    assert [result.path for result in [*some, *results]] == pictures


@pytest.mark.usefixtures("from_fifty")
def test_an_abandoned_stream_leaves_no_process(
    classifier: Classifier, pictures: list[str], started: list[PredictionProcesses]
) -> None:
    results = classifier.stream(pictures, processes=True)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert all(process._process.poll() is not None for process in started[0]._processes)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


@pytest.mark.usefixtures("from_fifty")
def test_large_pictures_are_decoded_by_this_process(
    classifier: Classifier, pictures: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One at a time, under its lock, so that memory does not grow with the number of processes."""
    monkeypatch.setattr(sharing, "LARGE_PIXELS", 150 * 150)
    monkeypatch.setattr(sharing, "_session", classifier.session)
    large = tmp_path / "large.png"
    Image.fromarray(np.full((151, 151, 3), COLORS["green"], np.uint8)).save(large)
    results = sharing.predict_in_process([pictures[0], str(large)], 1)
    assert [result and result.label for result in results] == ["airplane", None]


def test_another_model_under_the_same_name_is_not_used(tmp_path: Path) -> None:
    classifier = Classifier(saved(tmp_path, tiny_model()), "cpu", threads=2)
    saved(tmp_path, tiny_model(metadata={"class_names": classifier.session.metadata["class_names"], "model": "other"}))
    processes = PredictionProcesses(classifier.session, 1)
    with processes:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.daemon:
                thread.join(20)
        assert processes._idle.empty()
