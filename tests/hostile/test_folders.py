"""Folders that a stranger wrote (runs, seeds, parts of predictions, cached pictures): nothing in them is believed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile import posix
from tests.support.onnx_models import draw, saved, tiny_model
from tests.support.pictures import open_pictures, write_split_folder
from toolkit.cluster.local_engine import LocalEngine
from toolkit.cluster.prediction import PartsWritten, predict_to_folder
from toolkit.errors import ToolkitError
from toolkit.recipes.recipe import Recipe
from toolkit.runs.folder import RunFolder, create_run
from toolkit.runs.seeds import MAX_SEEDS, open_seeds

pytestmark = pytest.mark.hostile

# Runs


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(Recipe(), stem="x", root=tmp_path / "runs")


MEASURED = {"epoch": 1, "train_loss": 0.5, "val_loss": None}
RECORDS = [
    {"epoch": 10**400}, {"epoch": -1}, {"epoch": True}, {"epoch": 1.0}, {"epoch": 1, "train_loss": "\x1b[2J"},
    {"epoch": 1, "train_loss": [[]]}, {"epoch": 1, "train_loss": 1e308}, {"epoch": 1, "train_loss": 10**300},
    {"epoch": 1, "train_loss": float("nan")}, {"epoch": 1, "train_loss": float("-inf")}, [1], None, "epoch",
]  # fmt: skip


def test_records_that_no_epoch_writes_are_skipped(run: RunFolder) -> None:
    lines = ["[" * 100_000, "\x1b[2J", "9" * 5_000, *map(json.dumps, RECORDS), json.dumps(MEASURED)]
    run.metrics.write_text("\n".join(lines), encoding="utf-8")
    assert run.read_metrics() == [MEASURED]


def test_metrics_of_a_billion_lines_are_refused(run: RunFolder) -> None:
    with run.metrics.open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(ToolkitError, match="has 10,000,000,000 bytes"):
        run.read_metrics()


@posix
def test_a_lock_that_is_a_link_leaves_its_target(run: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    (run.path / ".lock").symlink_to(target)
    with pytest.raises(ToolkitError, match="cannot write in"), run.lock():
        pass
    assert target.read_text() == "content"


@pytest.mark.parametrize("name", [f"seed{MAX_SEEDS}", "seed999999999", "seed٣", "seed01", "seed-1", "seed" + "9" * 200])
def test_a_folder_cannot_ask_for_any_number_of_seeds(tmp_path: Path, name: str) -> None:
    (tmp_path / "seed2").mkdir()
    (tmp_path / "seed2" / "recipe.toml").touch()
    (tmp_path / name).mkdir()
    (tmp_path / name / "recipe.toml").touch()
    seeds = open_seeds(tmp_path)
    assert seeds is not None
    assert seeds.n == 3


# Parts of predictions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), tiny_model())


@pytest.fixture
def predict(tmp_path: Path, model: Path) -> Callable[[], PartsWritten]:
    """Predict three pictures, one of them damaged, into `out` in parts of two."""
    folder = tmp_path / "pictures"
    for name in "ab":
        draw(folder / f"{name}.png")
    (folder / "c.png").write_bytes(b"no picture")
    return lambda: predict_to_folder(LocalEngine(1), [folder], tmp_path / "out", model=model, part_size=2)


def change_plan(folder: Path, **changes: Any) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | changes))


PLANS: list[dict[str, Any]] = [
    {"part_size": 0}, {"part_size": -2}, {"part_size": 2.0}, {"part_size": "2"}, {"part_size": True},
    {"part_size": 10**30}, {"pictures": 10**18}, {"pictures": -1}, {"offsets": [0, 10**18]}, {"offsets": [0] * 100_000},
    {"offsets": {"0": 0}}, {"offsets": None}, {"working_folder": "/other"}, {"list_sha256": "\x1b[2J"}, {"more": 1},
    {"format": ["csv"]}, {"top": "1"},
]  # fmt: skip


def test_a_plan_is_compared_in_all_it_says(predict: Callable[[], PartsWritten], tmp_path: Path) -> None:
    predict()
    plan = (tmp_path / "out" / "plan.json").read_text()
    for changes in PLANS:
        change_plan(tmp_path / "out", **changes)
        with pytest.raises(ToolkitError) as caught:
            pytest.fail(f"{changes}: {predict()}")
        assert "another --out" in str(caught.value) or "another folder" in str(caught.value), changes
        assert str(caught.value).isprintable()
        (tmp_path / "out" / "plan.json").write_text(plan)
    assert predict().kept == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", "9" * 5_000, '{"part_size": 1}'])
def test_files_that_are_no_plan(predict: Callable[[], PartsWritten], tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text(text)
    with pytest.raises(ToolkitError, match="is not a plan of"):
        predict()


def test_the_model_of_the_folder_is_the_one_that_was_named(
    predict: Callable[[], PartsWritten], tmp_path: Path, model: Path
) -> None:
    predict()
    out = tmp_path / "out"
    part = (out / "part-00000.csv").read_bytes()
    (out / "part-00000.csv").unlink()
    (out / "model.onnx").write_bytes(b"another model")
    (out / "pictures.jsonl").write_text('"/etc/passwd"\n' * 3)
    predict()
    assert (out / "model.onnx").read_bytes() == model.read_bytes()
    assert (out / "part-00000.csv").read_bytes() == part


@pytest.mark.parametrize("line", ["[" * 100_000, "{}", '{"error": 1}', "x", "9" * 5_000, '{"error": "' + "x" * 70_000])
def test_errors_of_a_part_that_nobody_wrote(predict: Callable[[], PartsWritten], tmp_path: Path, line: str) -> None:
    written = predict()
    assert len(list(written.failures())) == 1
    (tmp_path / "out" / "errors-00001.jsonl").write_text(f"{line}\n")
    (tmp_path / "out" / "errors-99999.jsonl").write_text(f"{line}\n")  # of no part
    with pytest.raises(ToolkitError, match="errors-00001.jsonl is damaged: remove it and its part"):
        list(written.failures())


# Entries of the cache


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder."""
    monkeypatch.delenv("CIFAR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "cifar"


@pytest.mark.parametrize(
    "changes",
    [
        {"near_duplicates": float("inf")}, {"near_duplicates": [1]}, {"near_duplicates": "9" * 5_000}, {"errors": [1]},
        {"errors": {"9" * 5_000: "x"}}, {"errors": {"-1": "x"}}, {"errors": None}, {"count": 1e308}, {"crc32": "x"},
        {"key": "\x1b[2J"},
    ],
)  # fmt: skip
def test_a_cache_entry_that_nobody_wrote_is_built_again(tmp_path: Path, cache: Path, changes: dict[str, Any]) -> None:
    pets = write_split_folder(tmp_path / "pets")
    open_pictures(pets).train()
    (entry,) = (cache / "pictures").glob("*.pictures")
    whole = entry.read_bytes()
    magic, header, rest = whole.split(b"\n", 2)
    entry.write_bytes(b"\n".join([magic, json.dumps(json.loads(header) | changes).encode(), rest]))
    open_pictures(pets).train()
    assert entry.read_bytes() == whole
