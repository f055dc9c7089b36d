"""Hostile files through the command line: each reader gives one clear line, runs nothing, and leaves all as it was."""

import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.hostile import (
    CHECKPOINTS,
    MODELS,
    SPECIAL,
    a_terabyte,
    archive,
    contents,
    linux,
    little_memory,
    malicious_pickle,
    posix,
    values_of_a_checkpoint,
    with_a_product,
)
from tests.support.onnx_models import draw, saved, tiny_model
from tests.support.sources import Done
from toolkit.data.dataset import find_data, identify_data
from toolkit.inference.model_file import MAX_MODEL_BYTES, SHIPPED_MODEL
from toolkit.inference.paths import expand
from toolkit.recipes.recipe import load_recipe
from toolkit.runs.folder import RunFolder
from toolkit.runs.torch_file import MAX_BYTES

pytestmark = [pytest.mark.hostile, posix]

SECONDS = 20  # of the slowest case on a machine that does something else too; most take a few hundredths

Cifar = Callable[..., Done]


@pytest.fixture
def refused(cifar: Cifar, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run a command that must be refused: in little time and memory, with one line, and without a trace."""

    def run(*arguments: object, codes: tuple[int, ...] = (1,)) -> str:
        before, start = contents(tmp_path), time.monotonic()
        with little_memory():
            done = cifar(*arguments, cwd=tmp_path)
        assert time.monotonic() - start < SECONDS
        assert done.returncode in codes, done.stderr
        assert contents(tmp_path) == before
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        assert len(errors) == 1, done.stderr
        assert errors[0].isprintable()
        assert len(errors[0]) < 1500
        return errors[0]

    yield run
    assert not (tmp_path / "executed").exists()


def made(folder: Path, name: str, cases: dict[str, Callable[[], bytes]], case: str) -> Path:
    path = folder / name
    if case in SPECIAL:
        SPECIAL[case](path)
    else:
        path.write_bytes(cases[case]())
    return path


# Models


@pytest.mark.parametrize("case", [*MODELS, *SPECIAL])
@pytest.mark.parametrize("reader", ["predict", "verify", "evaluate"])
def test_models(reader: str, case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(120))
    path = made(tmp_path, "model.onnx", MODELS, case)
    picture = draw(tmp_path / "picture.png")
    commands = {
        "predict": ["predict", picture, "--model", path],
        "verify": ["verify", path, "--data", "demo"],
        "evaluate": ["evaluate", path, "--data", "demo"],
    }
    message = refused(*commands[reader], codes=(1, 3) if reader == "verify" else (1,))
    assert "model.onnx" in message or "the model is rejected" in message


@pytest.mark.parametrize("reader", ["predict", "verify", "evaluate"])
def test_a_model_that_asks_for_64_gib(reader: str, cifar: Cifar, tmp_path: Path) -> None:
    """With no limit set from outside: the toolkit's own is what refuses."""
    source = find_data("demo")
    identity = identify_data("demo", source.train())
    claims = {"class_names": json.dumps(source.class_names), "data": json.dumps(identity)}
    saved(tmp_path, with_a_product(2**16, claims=claims))
    commands = {
        "predict": ["predict", draw(tmp_path / "picture.png"), "--model", "model.onnx"],
        "verify": ["verify", "model.onnx", "--data", "demo"],
        "evaluate": ["evaluate", "model.onnx", "--data", "demo"],
    }
    done = cifar(*commands[reader], cwd=tmp_path)
    assert done.returncode == (3 if reader == "verify" else 1)
    assert "uses Mul (node product) as `cifar export` never does: with constants alone" in done.stderr + done.stdout


def test_what_a_model_says_of_its_data_is_no_more_than_text(refused: Callable[..., str], tmp_path: Path) -> None:
    names = '["' + '", "'.join("abcdefghij") + '"]'
    for claim in ('{"name": 5, "train_sha256": 7}', "[" * 4_000, '{"name": "demo"}', "5", '{"name": "\\ud800"}'):
        saved(tmp_path, tiny_model(metadata={"class_names": names, "data": claim}))
        assert "was trained on" in refused("evaluate", "model.onnx", "--data", "demo")


def test_names_in_another_order_are_not_believed(refused: Callable[..., str], tmp_path: Path) -> None:
    """Else the figures of one class would stand under the name of another."""
    source = find_data("demo")
    identity, names = identify_data("demo", source.train()), source.class_names[::-1]
    saved(tmp_path, tiny_model(metadata={"class_names": json.dumps(names), "data": json.dumps(identity)}))
    assert f"names its outputs {', '.join(names)}" in refused("evaluate", "model.onnx", "--data", "demo")


# Checkpoints


@pytest.mark.parametrize("case", [*CHECKPOINTS, *SPECIAL])
@pytest.mark.parametrize("reader", ["evaluate", "export", "verify"])
def test_checkpoints(reader: str, case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = made(tmp_path, "best.pt", CHECKPOINTS, case)
    (tmp_path / "kept.onnx").write_bytes(b"a model that works")
    commands = {
        "evaluate": ["evaluate", path, "--data", "demo"],
        "export": ["export", "kept.onnx", "--checkpoint", path, "--data", "demo"],
        "verify": ["verify", SHIPPED_MODEL, "--checkpoint", path, "--data", "demo"],
    }
    refused(*commands[reader])


@pytest.mark.parametrize("case", [*CHECKPOINTS, *SPECIAL])
def test_checkpoints_of_a_run_that_is_resumed(case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / ".lock").touch()
    (run / "recipe.toml").write_text(load_recipe("demo").as_toml())
    made(run, "last.pt", CHECKPOINTS, case)
    refused("train", "--resume", "run", "--data", "demo")


def test_the_state_of_another_optimizer_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / ".lock").touch()
    (run / "recipe.toml").write_text(recipe.as_toml())
    identity = identify_data("demo", find_data("demo").train())
    for training in ({}, {"optimizer": None}, {"optimizer": {"state": {}, "param_groups": []}, "seconds": 0.0}):
        values = values_of_a_checkpoint(recipe=recipe.as_dict(), data=identity, training=training)
        (run / "last.pt").write_bytes(archive(values))
        assert "cannot be resumed from" in refused("train", "--resume", "run", "--data", "demo")


def test_metrics_of_a_run_may_hold_anything(tmp_path: Path) -> None:
    lines = [b'{"epoch": 1, "x": 2}', b"5", b"[1]", b'{"epoch": "1"}', b"\xff\xfe", b"[" * 100_000, b'{"epoch": 2']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert RunFolder(tmp_path).read_metrics() == [{"epoch": 1, "x": 2}]


# Recipes

RECIPES = {
    "truncated": lambda: b"epochs = ",
    "truncated table": lambda: b"[run]\nmodel = 'resn",
    "empty": lambda: b"",
    "foreign": lambda: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "pickle": malicious_pickle,
    "bytearray": a_terabyte,
    "blank lines": lambda: b"\n" * 2**14 + b"x",
    "many blank lines": lambda: b"\n" * 2**20,
    "a long dotted key": lambda: b".".join([b"a"] * 8000) + b" = 1",
    "deep in lists": lambda: b"epochs = " + b"[" * 16_000,
    "deep in JSON": lambda: b'{"epochs": ' + b"[" * 16_000,
    "an immense number": lambda: b"epochs = 0x" + b"f" * 16_000,
    "an immense number in JSON": lambda: b'{"epochs": ' + b"9" * 4000 + b"}",
    "an immense rate": lambda: b"learning_rate = 1" + b"0" * 400,
    "an immense milestone": lambda: b"lr_schedule = 'step_decay'\nlr_milestones = [0x" + b"f" * 16_000 + b"]",
    "an immense length": lambda: b"lr_schedule = 'cosine_annealing_" + b"9" * 5000 + b"ep'",
    "an immense key": lambda: b'"\\u001b' + b"k" * 16_000 + b'" = 1',
    "no UTF-8": lambda: b"epochs = 3 # caf\xe9",
}


@pytest.mark.parametrize("case", [*RECIPES, *SPECIAL])
def test_recipes(case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = made(tmp_path, "recipe.toml", RECIPES, case)
    assert "recipe.toml" in refused("train", "--recipe", path, "--data", "demo", codes=(1, 2))


@pytest.mark.parametrize("case", [*RECIPES, *SPECIAL])
def test_recipes_of_a_run_that_is_resumed(case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    made(run, "recipe.toml", RECIPES, case)
    refused("train", "--resume", "run", "--data", "demo", codes=(1, 2))


# Pictures


def bomb() -> bytes:
    """A PNG file of some kilobytes that asks for 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


PICTURES = {
    "truncated": lambda: b"\x89PNG\r\n\x1a\n" + bytes(20),
    "foreign": lambda: tiny_model().SerializeToString(),
    "pickle": malicious_pickle,
    "empty": lambda: b"",
    "bomb": bomb,
}


@pytest.mark.parametrize("case", [*PICTURES, *SPECIAL])
def test_pictures(case: str, cifar: Cifar, tmp_path: Path) -> None:
    """The good ones beside it are predicted all the same."""
    model = saved(tmp_path, tiny_model())
    made(tmp_path, "b.png", PICTURES, case)
    good = [draw(tmp_path / "a.png"), draw(tmp_path / "c.png")]
    before, start = contents(tmp_path), time.monotonic()
    with little_memory():
        done = cifar("predict", good[0], "b.png", good[1], "--model", model, "--provider", "cpu", cwd=tmp_path)
    assert time.monotonic() - start < SECONDS
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2), done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith(("error: b.png: ", "error: b.png "))], (
        done.stderr
    )
    assert contents(tmp_path) == before


@linux
def test_names_that_are_no_text_and_try_to_write_a_line_of_their_own(refused: Callable[..., str]) -> None:
    name = b"x\nverified\x1b[2J\xe9".decode("utf-8", "surrogateescape")
    for arguments in (
        ["verify", f"{name}.onnx", "--data", "demo"],
        ["evaluate", f"{name}.pt", "--data", "demo"],
        ["export", "m.onnx", "--checkpoint", f"{name}.pt", "--data", "demo"],
        ["train", "--recipe", name],
        ["train", "--resume", name, "--data", "demo"],
        ["train", "--data", name],
    ):
        assert r"x\nverified\x1b[2J" in refused(*arguments, codes=(1, 2))


def test_a_pattern_that_is_none(refused: Callable[..., str], cifar: Cifar, tmp_path: Path) -> None:
    model = saved(tmp_path, tiny_model())
    for pattern in ("a**.png", "**b/*.png", "[", "[!"):
        done = cifar("predict", pattern, "--model", model, "--provider", "cpu", cwd=tmp_path)
        assert done.returncode == 1
        assert "none matches it as a pattern" in done.stderr


def test_limits_stand_far_above_what_is_read() -> None:
    largest = max(path.stat().st_size for path in SHIPPED_MODEL.parent.iterdir())
    assert largest * 10 < min(MAX_MODEL_BYTES, MAX_BYTES)


class Entry:
    """As os.scandir gives them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_dir(self) -> bool:
        return False


def test_a_folder_of_a_million_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names alone are kept, and the first picture is tried at once."""
    numbers = range(10**6)
    entries = (Entry(f"{number:07}.{'png' if number % 2 else 'txt'}") for number in numbers)
    monkeypatch.setattr(os, "scandir", lambda folder: nullcontext(entries))
    start = time.monotonic()
    with little_memory(room=2**29):
        pictures = expand([tmp_path])
        assert next(pictures) == str(tmp_path / "0000001.png")
        assert time.monotonic() - start < SECONDS
        assert sum(1 for _ in pictures) == 10**6 // 2 - 1
