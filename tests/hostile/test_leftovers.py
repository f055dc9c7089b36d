"""Killed processes and impossible places: leftovers are removed, folders appear whole, names are checked early."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.hostile import contents, linux, posix
from tests.support.sources import ROOT, Done, colored_source
from tests.support.training import train_epochs
from toolkit.command_line import note
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import create_folder_atomically, replacing, require_writable
from toolkit.inference.paths import expand
from toolkit.recipes.recipe import Recipe
from toolkit.runs.folder import RunFolder, create_run, find_newest_finished_run, open_run
from toolkit.runs.seeds import SeedRuns

pytestmark = [pytest.mark.hostile, posix, pytest.mark.slow]

Cifar = Callable[..., Done]


def killed_in(block: str, folder: Path) -> None:
    """Run a block of Python in a process that is killed at its end."""
    code = f"import os, signal, sys; from pathlib import Path; folder = Path(sys.argv[1])\n{block}"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def test_temporary_files_of_killed_processes_are_removed_by_the_next_writer(tmp_path: Path) -> None:
    block = f"""
from toolkit.files import replacing
with replacing(folder / 'a.txt') as path:
    path.write_text('half')
    {KILL}"""
    killed_in(block, tmp_path)
    assert len(list(tmp_path.glob(".a.txt.*.partial"))) == 1
    with replacing(tmp_path / "b.txt") as path:  # another name: nothing to do with it
        path.write_text("b")
    assert len(list(tmp_path.glob(".a.txt.*.partial"))) == 1
    with replacing(tmp_path / "a.txt") as path:
        path.write_text("whole")
    assert contents(tmp_path) == {"a.txt": b"whole", "b.txt": b"b"}


def test_temporary_files_in_use_are_kept(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as outer:
        outer.write_text("outer")
        with replacing(tmp_path / "a.txt") as inner:
            inner.write_text("inner")
        assert outer.read_text() == "outer"
    assert contents(tmp_path) == {"a.txt": b"outer"}


def test_a_run_folder_appears_whole(tmp_path: Path) -> None:
    """A process that is killed while the folder is made leaves nothing that is taken for a run."""
    block = f"""
from toolkit.recipes.recipe import Recipe
from toolkit.runs.folder import RunFolder, create_run
RunFolder.write_recipe = lambda self, recipe: {KILL}
create_run(Recipe(), stem='x', name='run', root=folder)"""
    killed_in(block, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    with pytest.raises(ToolkitError, match="are: none yet"):
        open_run("run", root=tmp_path)
    run = create_run(Recipe(epochs=7), stem="x", name="run", root=tmp_path)
    assert run.read_recipe().epochs == 7
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert run.path.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_run_that_was_killed_as_soon_as_its_folder_appeared_is_resumed(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.replace({"epochs": 1, "run": {"model": "m6"}})
    create_run(recipe, stem="x", name="run", root=tmp_path)
    with pytest.raises(UsageError, match="choose another --name, or --resume .*run"):
        create_run(recipe, stem="x", name="run", root=tmp_path)
    assert len(train_epochs(open_run("run", root=tmp_path), colored_source(60, 10), resume=True)) == 1


def test_two_processes_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the folder after this one has looked."""
    write = RunFolder.write_recipe

    def slow(self: RunFolder, recipe: Recipe) -> None:
        monkeypatch.setattr(RunFolder, "write_recipe", write)
        assert create_run(Recipe(epochs=1), stem="x", root=tmp_path).path.name == "x"
        write(self, recipe)

    monkeypatch.setattr(RunFolder, "write_recipe", slow)
    assert create_run(Recipe(epochs=2), stem="x", root=tmp_path).path.name == "x-2"
    assert [open_run(name, root=tmp_path).read_recipe().epochs for name in ("x", "x-2")] == [1, 2]


def test_a_folder_that_is_not_yet_whole_is_no_run(tmp_path: Path) -> None:
    with create_folder_atomically(tmp_path / "run") as temporary:
        (temporary / "recipe.toml").write_text("")
        (temporary / "summary.json").write_text("{}")
        with pytest.raises(ToolkitError, match="no run in .* has finished"):
            find_newest_finished_run(root=tmp_path)


# Names and places


@pytest.mark.parametrize("length", [100, 245, 250])
def test_names_that_the_file_system_takes_can_be_written(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("x" * (length - 5) + ".onnx")
    require_writable(path)
    with replacing(path) as temporary:
        temporary.write_text("x")
    assert contents(tmp_path) == {path.name: b"x"}


@linux
def test_names_that_it_does_not_take_are_refused_before_any_work(cifar: Cifar, tmp_path: Path) -> None:
    for command in (["export", "x" * 251 + ".onnx"], ["predict", "a.png", "--plot", "x" * 252 + ".png"]):
        start = time.monotonic()
        done = cifar(*command, cwd=tmp_path)
        assert (done.returncode, "File name too long" in done.stderr) == (1, True), done.stderr
        assert time.monotonic() - start < 5
    done = cifar("train", "--name", "x" * 245, "--data", "demo", cwd=tmp_path)
    assert (done.returncode, "cannot name a run" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


# Other files


@pytest.mark.parametrize(
    "text", ["{}", "[]", "5", '{"best": 5}', '{"best": {"epoch": 1, "validation": 3}, "last": {}}']
)
def test_a_summary_may_hold_anything(text: str, tmp_path: Path) -> None:
    run = SeedRuns(tmp_path, 1).runs[0]
    run.write_recipe(Recipe())
    run.summary.write_text(text)
    with pytest.raises(ToolkitError, match=r"seed0/summary.json is damaged"):
        SeedRuns(tmp_path, 1).write_summary()
    assert run.data_name() is None


RATES = {
    "learning_rate = 1e39": "learning_rate must be a number from 0 to 1000000, not 1e+39",
    "weight_decay = 1e39": "weight_decay must be a number from 0 to",
    "sgd_learning_rate = 1e39": "sgd_learning_rate must be a number from 0 to",
    "warmup_epochs = 1e308": "warmup_epochs must be a number from 0 to",
    "[data_augmentation]\nmixup_alpha = 1e308": "mixup_alpha must be a number from 0 to 1000, not 1e+308",
    "[data_augmentation]\nmixup_alpha = 1e-320": "mixup_alpha must be 0, or a number from",
}


@pytest.mark.parametrize("text", RATES)
def test_rates_beyond_float32_are_refused_in_one_line(text: str, cifar: Cifar, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    done = cifar("train", "--recipe", "recipe.toml", "--data", "demo", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert RATES[text] in done.stderr


def test_standard_input_that_is_closed(tmp_path: Path) -> None:
    command = 'exec "$@" <&-'
    program = [sys.executable, str(ROOT / "cli.py"), "predict", "-"]
    done = subprocess.run(["sh", "-c", command, "sh", *program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:] == ["error: standard input is closed"]


def test_a_file_named_like_standard_input_beside_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("-", "a"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert list(expand(["*"])) == ["./-", "a"]
    assert list(expand(["-"])) == ["-"]


def test_a_note_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    note("a run began in \x1b]52;c;eA==\x07\nverified")
    assert capsys.readouterr().err == "a run began in \\x1b]52;c;eA==\\x07\\nverified\n"
