"""The command line as a user meets it: results on stdout, notes on stderr, and an exit code for each kind of end."""

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import torch

from models import build_model
from tests.support.sources import ROOT, colored_source
from toolkit import __version__
from toolkit.data.dataset import find_data, identify_data
from toolkit.evaluation.plots import MAX_PICTURES
from toolkit.recipes.recipe import Recipe, recipe_keys
from toolkit.runs import location
from toolkit.runs.checkpoint import Checkpoint, identify_checkpoint, load_checkpoint, save_checkpoint
from toolkit.training import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cifar):
    """A folder with a finished run on the drawn data, two epochs long, and the process that made it."""
    folder = tmp_path_factory.mktemp("trained")
    done = cifar("train", "--recipe", "demo", "--data", "demo", "--epochs", 2, "--json", "--tensorboard", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory):
    """A network that nothing was ever taught, as a checkpoint that belongs to the drawn data."""
    torch.manual_seed(0)
    source = find_data("demo")
    path = tmp_path_factory.mktemp("random") / "random.pt"
    arguments = {"num_classes": 10, "dropout_rate": 0.3}
    weights = build_model("resnet20", **arguments).state_dict()
    identity = identify_data("demo", source.train())
    save_checkpoint(
        Checkpoint("resnet20", arguments, source.class_names, Recipe().as_dict(), identity, 0, None, weights), path
    )
    return path


def test_version_and_help(cifar):
    assert cifar("--version").stdout == f"cifar {__version__}\n"
    process = subprocess.run([sys.executable, ROOT / "cli.py", "--help"], capture_output=True, text=True, check=True)
    text = process.stdout
    for name in ("train", "evaluate", "export", "verify", "predict", "models", "data", "demo"):
        assert f"  {name} " in text


def test_train_gives_json_on_stdout_and_lines_on_stderr(trained):
    folder, done = trained
    summary = json.loads(done.stdout)
    assert summary["epochs"] == 2
    assert summary["run"] == "runs/demo-resnet20-seed0"
    assert "Training resnet20 on demo, in runs/demo-resnet20-seed0" in done.stderr
    assert "  2/2 " in done.stderr
    names = {path.name for path in (folder / "runs" / "demo-resnet20-seed0").iterdir()}
    assert {"recipe.toml", "metrics.jsonl", "best.pt", "last.pt", "summary.json", "curves.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)


def test_a_finished_run_is_not_resumed(trained, cifar):
    done = cifar("train", "--resume", "demo-resnet20-seed0", "--data", "demo", cwd=trained[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert "is finished: there is nothing to resume" in done.stderr


def test_resume_keeps_its_own_recipe(trained, cifar):
    done = cifar("train", "--resume", "demo-resnet20-seed0", "--epochs", 3, cwd=trained[0])
    assert done.returncode == 2
    assert "leave out --recipe, --name, --init, --teacher and the flags of the recipe" in done.stderr


def test_distillation_from_a_run(trained, cifar):
    folder, _ = trained
    options = ("--recipe", "demo", "--data", "demo", "--epochs", 1, "--name", "student", "--json")
    done = cifar("train", *options, "--teacher", "demo-resnet20-seed0", cwd=folder)
    assert done.returncode == 0, done.stderr
    recipe = tomllib.loads((folder / "runs/student/recipe.toml").read_text())
    assert recipe["distillation_weight"] == launch.DISTILLATION_WEIGHT
    taught_by = load_checkpoint(folder / "runs/demo-resnet20-seed0/best.pt")
    assert json.loads(done.stdout)["teacher"] == identify_checkpoint(taught_by)
    assert "Distillation from resnet20: " in done.stderr
    shutil.rmtree(folder / "runs/student")  # the other tests expect one run


def test_evaluate_a_run_as_table_json_and_picture(trained, cifar):
    folder, _ = trained
    table = cifar("evaluate", "--data", "demo", "--plot", "confusion.png", cwd=folder)
    assert table.stdout.startswith("Accuracy  ")
    assert "Evaluating runs/demo-resnet20-seed0/best.pt on the test set of demo" in table.stderr
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(cifar("evaluate", "demo-resnet20-seed0", "--data", "demo", "--json", cwd=folder).stdout)
    assert result["images"] == sum(map(sum, result["confusion"])) == 1000
    assert result["correct"] == sum(result["confusion"][i][i] for i in range(10))


@pytest.fixture
def colored(tmp_path, monkeypatch):
    """An empty folder, a short recipe in it, and a tiny data set in the place of CIFAR-10."""
    for module in (location, launch):
        monkeypatch.setattr(module, "find_data", lambda *arguments, **options: colored_source())
    crops = {"small_crop_size": 8, "small_crop_share": 1.0}
    recipe = Recipe.from_dict({"epochs": 2, "batch_size": 50, "data_augmentation": crops, "run": {"val_size": 50}})
    (tmp_path / "short.toml").write_text(recipe.as_toml())
    return tmp_path


def interrupt_at(monkeypatch, step):
    """Ctrl-C at that step of the next training."""
    calls = iter(range(1, step))

    def interrupting(self, done, images):
        if next(calls, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.display.TrainingDisplay.step", interrupting)


def test_seeds_are_trained_interrupted_resumed_and_evaluated(colored, cifar, monkeypatch):
    train = ["train", "--recipe", "short.toml", "--seeds", 2, "--json"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)  # of six a seed: in the second epoch of seed 1
        done = cifar(*train, "--device", "cpu", cwd=colored)
    assert (done.returncode, done.stdout) == (130, "")
    again = done.stderr.split("1 of 2 epochs are kept in runs/short-resnet20-seeds/seed1. Resume with: ")[1]
    assert again.strip() == (
        "cifar train --seeds 2 --recipe runs/short-resnet20-seeds/seed0/recipe.toml --name short-resnet20-seeds "
        "--device cpu"
    )
    done = cifar(*shlex.split(again)[1:], "--json", cwd=colored)
    assert done.returncode == 0, done.stderr
    assert "Finished before: runs/short-resnet20-seeds/seed0" in done.stderr
    assert "Resuming resnet20 on colored, in runs/short-resnet20-seeds/seed1" in done.stderr
    assert "  1/2 " not in done.stderr  # an epoch that was done is not trained again
    summary = json.loads(done.stdout)
    assert (summary["folder"], summary["n"], len(summary["seeds"])) == ("runs/short-resnet20-seeds", 2, 2)
    assert json.loads(cifar(*train, cwd=colored).stdout) == summary  # the same command again trains nothing
    assert json.loads((colored / "runs/short-resnet20-seeds/seeds.json").read_text()) | summary == summary

    refused = cifar(*train, "--epochs", 3, cwd=colored)
    assert refused.returncode == 2
    assert "has another recipe (epochs was 2, now 3)" in refused.stderr

    table = cifar("evaluate", "short-resnet20-seeds", cwd=colored)
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["seed", "0", "1", "mean", "std", "minimum"]
    result = json.loads(cifar("evaluate", "runs/short-resnet20-seeds", "--json", cwd=colored).stdout)
    correct = [row["correct"] for row in result["seeds"]]
    assert result["figures"]["accuracy"]["mean"] == pytest.approx(sum(correct) / 100)
    one = json.loads(cifar("evaluate", "short-resnet20-seeds/seed1", "--json", cwd=colored).stdout)
    assert one["correct"] == correct[1]
    newest = cifar("evaluate", cwd=colored)
    assert "Evaluating runs/short-resnet20-seeds/seed1/best.pt" in newest.stderr
    for option in (["--plot", "x.png"], ["--provider", "cpu"]):
        refused = cifar("evaluate", "short-resnet20-seeds", *option, cwd=colored)
        assert (refused.returncode, f"{option[0]} takes one model" in refused.stderr) == (2, True)
    exported = cifar("export", "m.onnx", "--run", "short-resnet20-seeds", cwd=colored)
    assert "holds several seeds: name one of them, such as runs/short-resnet20-seeds/seed0" in exported.stderr


def test_seeds_as_a_table(colored, cifar):
    done = cifar("train", "--recipe", "short.toml", "--seeds", 1, "--val-size", 0, "--epochs", 1, cwd=colored)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:4] == ["1", "seeds", "of", "resnet20,"]
    assert lines[1] == ["seed", "train", "acc", "time"]
    assert [line[0] for line in lines[2:]] == ["0", "mean", "std", "minimum"]
    assert lines[4] == ["std", "-"]  # of one seed there is none


def test_export_verify_evaluate_predict(trained, cifar, tmp_path):
    folder, _ = trained
    model = tmp_path / "model.onnx"
    done = cifar("export", model, "--data", "demo", "--min-accuracy", "0.05", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    checkpoint = folder / "runs" / "demo-resnet20-seed0" / "best.pt"
    verified = cifar("verify", model, "--checkpoint", checkpoint, "--data", "demo", "--min-accuracy", "0.05")
    assert verified.returncode == 0, verified.stderr
    without = cifar("verify", model, "--data", "demo", "--min-accuracy", "0.05")
    assert "not checked (no checkpoint)" in without.stdout
    assert "metadata not checked" in " ".join(without.stdout.split())
    assert "checkpoint_sha256" in without.stdout
    of_onnx = json.loads(cifar("evaluate", model, "--json").stdout)  # the file says that it belongs to the drawn data
    of_torch = json.loads(cifar("evaluate", checkpoint, "--data", "demo", "--json").stdout)
    assert of_onnx["confusion"] == of_torch["confusion"]
    assert of_onnx["loss"] == pytest.approx(of_torch["loss"], abs=1e-4)
    for file, option in ((checkpoint, "--provider"), (model, "--device")):  # each is for the other kind of file
        refused = cifar("evaluate", file, option, "cpu", "--data", "demo")
        assert (refused.returncode, "choose a" in refused.stderr) == (2, True), refused.stderr

    assert cifar("data", "--data", "demo", "--samples", tmp_path / "samples").returncode == 0
    (tmp_path / "samples" / "broken.png").write_bytes(b"no picture")
    predicted = cifar("predict", "samples", "--format", "jsonl", "--top", 2, cwd=tmp_path)
    assert predicted.returncode == 1
    assert "Model: model.onnx" in predicted.stderr
    assert "broken.png" in predicted.stderr
    rows = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert len(rows) == 10
    assert all(len(row["top"]) == 2 and row["top"][0]["label"] == row["label"] for row in rows)
    as_json = json.loads(cifar("predict", "samples", "--format", "json", cwd=tmp_path).stdout)
    assert [row["path"] for row in as_json] == [row["path"] for row in rows]
    as_csv = list(csv.DictReader(io.StringIO(cifar("predict", "samples", "--format", "csv", cwd=tmp_path).stdout)))
    assert [row["label"] for row in as_csv] == [row["label"] for row in rows]
    assert len(cifar("predict", "samples", cwd=tmp_path).stdout.splitlines()) == 10


def test_a_random_checkpoint_is_rejected_and_nothing_is_written(random_checkpoint, cifar, tmp_path):
    kept = tmp_path / "kept.onnx"
    kept.write_bytes(b"what was there")
    for output in (tmp_path / "new.onnx", kept):
        done = cifar("export", output, "--checkpoint", random_checkpoint, "--data", "demo")
        assert done.returncode == 3, done.stderr
        assert "error: the model is rejected: accuracy: found" in done.stderr
        assert "REJECTED" in done.stdout
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept.onnx"]
    assert kept.read_bytes() == b"what was there"


def test_a_model_of_other_data_is_not_judged(trained, cifar, tmp_path):
    checkpoint = trained[0] / "runs" / "demo-resnet20-seed0" / "best.pt"
    stranger = tmp_path / "stranger.pt"
    values = load_checkpoint(checkpoint)
    save_checkpoint(Checkpoint(**(vars(values) | {"data": {"name": "demo", "train_sha256": "0" * 64}})), stranger)
    for command in (["evaluate", stranger], ["export", tmp_path / "x.onnx", "--checkpoint", stranger]):
        done = cifar(*command, "--data", "demo")
        assert done.returncode == 1
        assert "was trained on demo" in done.stderr
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--data", "demo", "--epochs", "0"], 2, "epochs must be a whole number from 1 to 1000000, not 0"),
        (["train", "--data", "demo", "--epochs", "many"], 2, "--epochs"),
        (["train", "--recipe", "slow"], 2, "no recipe 'slow'"),
        (["train", "--data", "demo", "--device", "gpu"], 2, "cannot use the device 'gpu'"),
        (["train", "--data", "demo"], 2, "a validation size of 5000 is too large"),
        (["train", "--data", "nowhere"], 1, "no CIFAR-10 where --data points"),
        (["train", "--resume", "nothing"], 1, "no run 'nothing'; the runs in runs are: none yet"),
        (["train", "--seeds", "3", "--seed", "1"], 2, "--seeds N trains the seeds 0 to N - 1: leave out --seed"),
        (["train", "--seeds", "3", "--resume", "x"], 2, "--resume resumes one run: leave out --seeds"),
        (["train", "--seeds", "0"], 2, "Invalid value for '--seeds'"),
        (["train", "--seeds", "2", "--name", "a/b", "--data", "demo"], 2, "'a/b' cannot name a run"),
        (["train", "--color"], 2, "No such option"),
        (["evaluate", "--data", "demo"], 1, "no run in runs has finished: `cifar train` starts one"),
        (
            ["export", "m.onnx", "--min-accuracy", "nan", "--checkpoint", "x.pt", "--data", "demo"],
            2,
            "is nan; it must be",
        ),
        (
            ["export", "m.onnx", "--min-accuracy", "91", "--checkpoint", "x.pt", "--data", "demo"],
            2,
            "is 91.0; it must be",
        ),
        (
            ["export", "m.onnx", "--min-accuracy", "-1", "--checkpoint", "x.pt", "--data", "demo"],
            2,
            "is -1.0; it must be",
        ),
        (["export", "m.onnx", "--checkpoint", "x.pt", "--data", "demo"], 1, "no checkpoint at x.pt"),
        (["export", "m.onnx", "--checkpoint", "x.pt", "--run", "y"], 2, "give --run or --checkpoint, not both"),
        (["train", "--recipe", "fsat"], 2, "no recipe 'fsat' (did you mean 'fast'?)"),
        (["train", "--step", "graph", "--device", "cpu"], 2, "only CUDA captures graphs"),
        (["export", "/dev/null", "--checkpoint", "x.pt", "--data", "demo"], 1, "is not an ordinary file"),
        (["evaluate", "modle.onnx"], 1, "no such file: modle.onnx"),
        (["evaluate", "--plot", "c.svg"], 2, "must end in .png"),
        (["data", "--data", "demo", "--fetch"], 2, "only cifar10 and cifar100 can be downloaded"),
        (["export"], 1, "no run in runs has finished: `cifar train` starts one"),
        (["verify", "nothing.onnx", "--data", "demo"], 1, "nothing.onnx"),
        (["predict", "x.png", "--model", "nothing.onnx"], 1, "nothing.onnx"),
        (["predict", "x.png", "--format", "xml"], 2, "'xml' is not one of 'table', 'json', 'jsonl', 'csv'"),
        (["predict"], 2, "Missing argument"),
        (["data", "--data", "nowhere"], 1, "a folder of pictures (train/CLASS/... and test/CLASS/..., or CLASS/...)"),
        (["fly"], 2, "No such command"),
    ],
)
def test_each_error_has_its_message_and_exit_code(arguments, code, message, cifar, tmp_path):
    done = cifar(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.onnx"))


def test_models_as_table_and_json(cifar):
    assert "resnet20          272,474            40,813,184                       yes" in cifar("models").stdout
    assert [row["model"] for row in json.loads(cifar("models", "--json").stdout)] == [
        "resnet20", "resnet20-wide", "resnet32", "m6",
    ]  # fmt: skip


def test_data_as_json(cifar):
    status = json.loads(cifar("data", "--data", "demo", "--json").stdout)
    assert (status["name"], status["complete"], status["train_count"]) == ("demo", True, 4000)


def flag_and_value(key):
    """Command-line words for a key of the recipe, with a value that is not its default, and that value."""
    if key.type is bool:
        return [f"--no-{key.flag[2:]}"], False
    values = {"early_stopping": ("4", 4), "lr_milestones": ("1,2", [1, 2]), "int": ("3", 3), "float": ("0.25", 0.25)}
    choices = {"SGD": "Adam", "cosine_annealing": "linear", "resnet20": "m6", "auto": "float32"}
    values |= {default: (other, other) for default, other in choices.items()}
    kind = key.name if key.name in values else key.default if isinstance(key.default, str) else key.type.__name__
    word, value = values[kind]
    return [key.flag, word], value


def test_every_key_of_the_recipe_has_a_flag_that_reaches_the_recipe(cifar, tmp_path, monkeypatch):
    flags, expected = [], {"data_augmentation": {}, "run": {}}
    for key in recipe_keys():
        words, value = flag_and_value(key)
        flags += words
        (expected[key.table] if key.table else expected)[key.name] = value
    launched = []

    def launch(options, **callbacks):
        launched.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.training.launch.launch", launch)
    assert cifar("train", *flags, cwd=tmp_path).returncode == 130
    assert launched[0].changes == expected


def test_the_warm_up_scales_with_the_epochs(cifar, colored):
    recipe = Recipe.from_dict({"epochs": 4, "warmup_epochs": 2, "run": {"val_size": 0}})
    (colored / "warm.toml").write_text(recipe.as_toml())
    done = cifar("train", "--recipe", "warm.toml", "--epochs", 1, "--name", "warm", cwd=colored)
    assert done.returncode == 0, done.stderr
    assert "Warm-up scaled with the epochs, to 0.5 epochs" in done.stderr
    assert "warmup_epochs = 0.5" in (colored / "runs/warm/recipe.toml").read_text()


def test_a_start_that_fails_leaves_no_run(cifar, colored):
    for options in (["--val-size", 5000], ["--seeds", 2, "--val-size", 5000]):
        done = cifar("train", "--recipe", "short.toml", *options, cwd=colored)
        assert done.returncode == 2
        assert not list(colored.glob("runs/**/recipe.toml"))


def test_seeds_that_have_not_begun_stay_once_another_has(cifar, colored, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        assert cifar("train", "--recipe", "short.toml", "--seeds", 3, cwd=colored).returncode == 130
    assert len(list(colored.glob("runs/short-resnet20-seeds/seed*/recipe.toml"))) == 3


def test_an_unfinished_run_is_named_before_a_second_one_starts(cifar, colored, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        done = cifar("train", "--recipe", "short.toml", cwd=colored)
    assert "no epoch was completed in runs/short-resnet20-seed0. Resume with: cifar train --resume runs" in done.stderr
    done = cifar("train", "--recipe", "short.toml", "--epochs", 1, cwd=colored)
    assert "runs/short-resnet20-seed0 is unfinished; this starts a new run. To resume that one instead" in done.stderr
    assert (colored / "runs/short-resnet20-seed0-2/summary.json").is_file()


def test_quiet_leaves_the_result_alone_on_stdout(trained, cifar):
    done = cifar("evaluate", "--data", "demo", "--quiet", cwd=trained[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Accuracy")


def test_quiet_training_prints_no_progress(colored, cifar):
    done = cifar("train", "--recipe", "short.toml", "--epochs", 1, "--quiet", cwd=colored)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Run")


def test_a_plot_of_standard_input_is_refused(cifar, tmp_path):
    done = cifar("predict", "-", "--plot", "plot.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --plot draws picture files, not standard input: leave out --plot\n"


def test_a_plot_of_too_many_pictures_is_refused_before_any_is_predicted(cifar, tmp_path):
    for number in range(MAX_PICTURES + 1):
        (tmp_path / f"{number}.png").touch()
    done = cifar("predict", ".", "--plot", "plot.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: --plot draws at most {MAX_PICTURES} pictures, and more are named: name fewer, or leave out --plot\n"
    )
    assert not (tmp_path / "plot.png").exists()
    assert f"at most {MAX_PICTURES}" in " ".join(cifar("predict", "--help").stdout.replace("│", " ").split())


def test_python_cli_py_is_the_cifar_command():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'cifar = "cli:main"' in text


def test_demo_goes_the_whole_path_and_shows_each_command(cifar, tmp_path):
    (tmp_path / "cifar-demo").mkdir()  # a folder of another demo, which is left alone
    done = cifar("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for command in (
        "train --recipe demo",
        "export cifar-demo-2/model.onnx",
        "verify",
        "data",
        "predict cifar-demo-2/samples",
    ):
        assert f"$ cifar {command}" in done.stdout
    predicted = [line.split() for line in done.stdout.splitlines() if line.endswith("-0001.png")]
    assert len(predicted) == 10
    right = [words[0] for words in predicted if words[-1].endswith(f"/{words[0]}-0001.png")]
    assert len(right) >= 8
    assert not any((tmp_path / "cifar-demo").iterdir())
