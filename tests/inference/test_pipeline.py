"""Paths -> predictions: which files are found, their order, batch sizes, and bad files."""

import dataclasses
import io
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.onnx_models import COLORS, draw, picture_model, saved, tiny_model
from tests.support.scenes import save_formats
from toolkit.data.cifar import CLASS_NAMES
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference import Classifier, Failure, Prediction, paths, pipeline
from toolkit.inference.paths import expand
from toolkit.inference.session import Session

LABELS = {"red": "airplane", "green": "automobile", "blue": "bird"}  # the first class of each channel
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX names and links")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(saved(tmp_path_factory.mktemp("model"), tiny_model()), "cpu", threads=2)


def test_a_picture(classifier: Classifier, tmp_path: Path) -> None:
    [prediction] = classifier.predict([draw(tmp_path / "sea.png", "blue")], top=4)
    odds = 1 / (3 + 7 * np.exp(-25))  # three classes look at blue
    assert (prediction.label, prediction.index) == ("bird", 2)
    assert prediction.probability == pytest.approx(odds, rel=1e-4)
    assert [name for name, _ in prediction.top] == ["bird", "dog", "ship", "airplane"]
    assert prediction.top[0] == (prediction.label, prediction.probability)
    assert prediction.path == str(tmp_path / "sea.png")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_results_come_in_the_order_of_the_paths(classifier: Classifier, tmp_path: Path, batch_size: int) -> None:
    names = [*COLORS] * 7
    paths = [draw(tmp_path / f"{i}.png", name) for i, name in enumerate(names)]
    results = list(classifier.stream(paths, batch_size=batch_size))
    assert [result.path for result in results] == paths
    assert [result.label for result in results if isinstance(result, Prediction)] == [LABELS[name] for name in names]


@pytest.mark.hostile
def test_a_bad_file_leaves_the_others_alone(classifier: Classifier, tmp_path: Path) -> None:
    good = [draw(tmp_path / f"{i}.png") for i in range(4)]
    (tmp_path / "bad.png").write_bytes(Path(good[0]).read_bytes()[:60])
    bad, missing = str(tmp_path / "bad.png"), str(tmp_path / "missing.png")
    results = list(classifier.stream([good[0], bad, good[1], missing, *good[2:]], batch_size=2))
    assert [type(result) for result in results] == [Prediction, Failure, Prediction, Failure, Prediction, Prediction]
    assert isinstance(results[3], Failure)
    assert results[3].error.startswith(f"{missing} cannot be opened: No such file")
    with pytest.raises(ToolkitError, match=r"bad\.png cannot be decoded"):
        classifier.predict([good[0], bad])


@pytest.mark.parametrize(("provider", "most"), [("cpu", 16), ("cuda", 20)])
def test_batch_sizes_on_cpu_and_gpu(
    classifier: Classifier, provider: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU each thread runs the model on its own share; a GPU gets whole batches, from one thread."""
    seen: list[tuple[int, int]] = []
    probabilities = pipeline._probabilities

    def recording(session: Session, images: list[np.ndarray]) -> np.ndarray:
        seen.append((threading.get_ident(), len(images)))
        return probabilities(session, images)

    monkeypatch.setattr(pipeline, "_probabilities", recording)
    pictures = [np.full((32, 32, 3), COLORS[name], np.uint8) for name in [*COLORS] * 30]
    session = dataclasses.replace(classifier.session, provider=provider)
    results = list(pipeline.classify(session, pictures, workers=2, batch_size=20))
    assert [result.label for result in results if isinstance(result, Prediction)] == [*LABELS.values()] * 30
    assert sum(count for _, count in seen) == 90
    assert max(count for _, count in seen) == most
    here = threading.get_ident()
    assert all((thread == here) == (provider == "cuda") for thread, _ in seen)


@pytest.mark.parametrize(("threads", "workers", "each"), [(1, 1, 1), (3, 3, 1), (16, 16, 1), (64, 16, 4)])
def test_threads_are_divided_among_workers(tmp_path: Path, threads: int, workers: int, each: int) -> None:
    classifier = Classifier(saved(tmp_path, tiny_model()), "cpu", threads=threads)
    assert (classifier._workers, classifier.session.threads) == (workers, each)


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_a_usage_error(tmp_path: Path, threads: int) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1"):
        Classifier(saved(tmp_path, tiny_model()), "cpu", threads=threads)


def test_only_failures(classifier: Classifier, tmp_path: Path) -> None:
    results = list(classifier.stream([str(tmp_path / str(i)) for i in range(5)], batch_size=2))
    assert [type(result) for result in results] == [Failure] * 5


def test_no_pictures(classifier: Classifier) -> None:
    assert list(classifier.stream([])) == []
    assert classifier.predict([]) == []


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 10**6}, {"top": 0}, {"top": 11}])
def test_options_out_of_range_are_usage_errors_at_once(classifier: Classifier, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must lie between 1 and"):
        classifier.stream([], **options)
    with pytest.raises(UsageError, match="must lie between 1 and"):
        classifier.predict([], **options)


# Pictures in memory.


def test_arrays_and_pillow_images(classifier: Classifier, tmp_path: Path) -> None:
    red = np.full((32, 32, 3), COLORS["red"], np.uint8)
    green = np.full((50, 40, 3), COLORS["green"], np.uint8)
    blue = Image.new("RGBA", (99, 50), COLORS["blue"])
    path = draw(tmp_path / "x.png", "green")
    results = classifier.predict([red, green, blue, Path(path), np.stack([red, red])])
    assert [result.label for result in results] == [
        LABELS[name] for name in ("red", "green", "blue", "green", "red", "red")
    ]
    assert [result.path for result in results] == ["", "", "", path, "", ""]


def test_a_model_of_pictures_gets_them_whole_and_one_at_a_time(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upright, over white, at their own sizes; the predictions are those of the uint8 form, but for rounding."""
    whole = Classifier(saved(tmp_path, picture_model()), "cpu", threads=2)
    files = save_formats(tmp_path / "pictures")
    Image.new("RGB", (70, 50), COLORS["green"]).save(tmp_path / "pictures" / "wide.png")
    sources = [
        *files.values(),
        tmp_path / "pictures" / "wide.png",
        np.zeros((3, 9, 3), np.uint8),
        Image.new("L", (8, 2)),
    ]
    seen: list[tuple[int, ...]] = []
    run = Session.logits_and_probabilities

    def recording(session: Session, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(images.shape)
        return run(session, images)

    expected = classifier.predict(sources, top=10)
    monkeypatch.setattr(Session, "logits_and_probabilities", recording)
    found = whole.predict(sources, top=10)
    assert [len(shape) for shape in seen] == [4] * len(sources)
    assert seen[list(files).index("rotated.jpg")][:3] == (1, 240, 240)
    assert seen[-3:] == [(1, 50, 70, 3), (1, 3, 9, 3), (1, 2, 8, 3)]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.path, ours.label) == (theirs.path, theirs.label)
        assert dict(ours.top) == pytest.approx(dict(theirs.top), abs=0.01)


def test_a_bad_file_leaves_a_model_of_pictures_running(tmp_path: Path) -> None:
    good, bad = draw(tmp_path / "a.png", "blue"), str(tmp_path / "missing.png")
    results = Classifier(saved(tmp_path, picture_model()), "cpu").stream([good, bad, good])
    assert [type(result) for result in results] == [Prediction, Failure, Prediction]


def test_a_single_picture_needs_no_list(classifier: Classifier, tmp_path: Path) -> None:
    path = draw(tmp_path / "x.png")
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    for single, count in ((path, 1), (Path(path), 1), (Image.new("L", (5, 5)), 1), (pixels, 2), (pixels[0], 1)):
        assert len(classifier.predict(single)) == count
    assert len(list(classifier.stream(path))) == 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((32, 32, 3)),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_other_arrays_are_usage_errors(classifier: Classifier, array: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"must be uint8 \(H, W, 3\)"):
        classifier.predict([array])


def test_predict_refuses_a_folder(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="is a folder"):
        classifier.predict([tmp_path])


@pytest.mark.hostile
def test_a_model_whose_outputs_are_not_finite(tmp_path: Path) -> None:
    model = tiny_model()
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.raw_data = np.full((3, 10), np.nan, np.float32).tobytes()
    with pytest.raises(ToolkitError, match="are not finite; `cifar verify`"):
        Classifier(saved(tmp_path, model), "cpu").predict(np.ones((32, 32, 3), np.uint8))


def test_many_threads_share_a_classifier(classifier: Classifier, tmp_path: Path) -> None:
    paths = {name: draw(tmp_path / f"{name}.png", name) for name in COLORS}

    def work(name: str) -> list[str]:
        return [prediction.label for prediction in classifier.predict([paths[name]] * 20, batch_size=3)]

    names = [*COLORS] * 4
    with ThreadPoolExecutor(6) as pool:
        for name, labels in zip(names, pool.map(work, names), strict=True):
            assert labels == [LABELS[name]] * 20


# Standard input.


def test_standard_input(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(Path(draw(tmp_path / "x.png", "green")).read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    first, second = classifier.stream(["-", "-"])
    assert (first.path, first.label) == ("-", LABELS["green"])
    assert second == Failure("-", "standard input is empty")


# Folders, globs, names.


def test_a_folder_by_name_then_its_folders(tmp_path: Path) -> None:
    names = ["b.png", "a.JPG", "z/c.png", "m/d.gif", "m/k/e.webp", "notes.txt", ".hidden.png", ".git/x.png"]
    for name in names:
        draw(tmp_path / name)
    expected = ["a.JPG", "b.png", "m/d.gif", "m/k/e.webp", "z/c.png"]
    assert list(expand([tmp_path])) == [str(tmp_path / name) for name in expected]


def test_a_named_file_is_read_whatever_its_suffix(classifier: Classifier, tmp_path: Path) -> None:
    [result] = classifier.stream([draw(tmp_path / "picture.txt")])
    assert isinstance(result, Prediction)


def test_a_folder_without_pictures_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    [failure] = expand([tmp_path])
    assert isinstance(failure, Failure)
    assert "no file in this folder has the suffix of a picture" in failure.error


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("b.png", "a.png", "c.gif", "in/d.png", "in/deep/e.png", "odd[1].png")
    for name in (*names, ".hidden/f.png", ".g.png", "in/._d.png"):
        draw(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert list(expand(["*.png"])) == ["a.png", "b.png", "odd[1].png"]
    assert list(expand(["odd[1].png"])) == ["odd[1].png"]  # an existing path is never a pattern
    assert list(expand([os.path.join("i?", "*.png")])) == [os.path.join("in", "d.png")]
    assert len(list(expand(["**/*.png"]))) == len(list(expand([str(tmp_path / "**" / "*.png")]))) == 5
    assert list(expand(["i*"])) == [os.path.join("in", "d.png"), os.path.join("in", "deep", "e.png")]
    for pattern in ("**/.hidden/*.png", ".h*/**/*.png"):
        assert list(expand([pattern])) == [os.path.join(".hidden", "f.png")]
    for pattern in ("*.bmp", "**.bmp"):
        [failure] = expand([pattern])
        assert isinstance(failure, Failure)
        assert "none matches" in failure.error


@pytest.mark.hostile
@posix
def test_loops_of_links_end_and_each_folder_is_read_once(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "in/b.png")
    for name in ("in/up", "in/again", "other"):
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "in/self").symlink_to("self")
    assert list(expand([tmp_path])) == [str(tmp_path / "a.png"), str(tmp_path / "in/b.png")]
    assert len(list(expand([f"{tmp_path}/**/*.png"]))) == 2


@pytest.mark.hostile
@posix
def test_names_with_line_ends_and_foreign_bytes(classifier: Classifier, tmp_path: Path) -> None:
    for name in (b"a\nb.png", b"caf\xe9.png"):
        draw(tmp_path / os.fsdecode(name))
    results = list(classifier.stream([tmp_path]))
    assert [type(result) for result in results] == [Prediction] * 2
    assert [os.fsencode(os.path.basename(result.path)) for result in results] == [b"a\nb.png", b"caf\xe9.png"]
    [failure] = classifier.stream([os.fsdecode(b"no\n\xe9.png")])
    assert isinstance(failure, Failure)
    assert failure.error.startswith(r"no\n\xe9.png cannot be opened: ")


@pytest.mark.hostile
@posix
def test_special_files_in_a_folder_are_failures(classifier: Classifier, tmp_path: Path) -> None:
    draw(tmp_path / "b.png")
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    (tmp_path / "d.png").symlink_to("nowhere")
    results = list(classifier.stream([tmp_path]))
    assert [type(result) for result in results] == [Failure, Prediction, Failure, Failure]


@pytest.mark.hostile
@posix
def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    picture, failure = expand([tmp_path])
    assert picture == str(tmp_path / "a.png")
    assert isinstance(failure, Failure)
    assert failure.error.endswith("locked cannot be listed: Permission denied")


@pytest.mark.hostile
def test_a_large_folder_is_decoded_as_needed(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(2_000):
        (tmp_path / f"{i:05}.png").touch()
    tried = itertools.count()
    read = paths.read_image

    def counting(path: str, **options: int) -> np.ndarray:
        next(tried)
        return read(path, **options)

    monkeypatch.setattr(paths, "read_image", counting)
    results = classifier.stream([tmp_path], batch_size=8)
    first = [next(results) for _ in range(20)]
    assert [os.path.basename(result.path) for result in first] == [f"{i:05}.png" for i in range(20)]
    results.close()  # type: ignore[attr-defined]
    assert next(tried) <= 20 + 4 + 2 * 8 + 8


@pytest.mark.hostile
def test_paths_are_consumed_as_needed(classifier: Classifier, tmp_path: Path) -> None:
    path = draw(tmp_path / "x.png")
    taken = itertools.count()
    endless = (path for _ in taken)
    results = classifier.stream(endless, batch_size=4)
    assert len([next(results) for _ in range(10)]) == 10
    results.close()  # type: ignore[attr-defined]
    assert next(taken) < 40


def test_an_abandoned_stream_leaves_no_threads(classifier: Classifier, tmp_path: Path) -> None:
    results = classifier.stream([draw(tmp_path / "x.png")] * 100, batch_size=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


def test_the_default_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR_MODEL", str(saved(tmp_path, tiny_model())))
    assert Classifier(provider="cpu").session.class_names == CLASS_NAMES
