"""The user's own pictures from end to end: data, train, evaluate, export, verify, predict."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.support.pictures import write_colored_folder, write_folder, write_split_folder
from tests.support.sources import ROOT
from toolkit.data.dataset import find_data
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.training import launch

pytestmark = pytest.mark.slow

SHORT = ["--epochs", 2, "--precision", "float32", "--batch-size", 8]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CIFAR_DATA", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory, cifar):
    """A folder with pets/, and runs/ with a run on them that started from the shipped model; the process of the run."""
    folder = tmp_path_factory.mktemp("scene")
    write_colored_folder(folder / "pets", {"train/cat": 12, "train/dog": 12, "test/cat": 5, "test/dog": 4})
    (folder / "pets/train/cat/broken.png").write_bytes(b"no picture")
    done = cifar("train", "--data", "pets", "--init", "shipped", "--skip-damaged", "--json", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_from_the_shipped_model_uses_the_preset_and_records_its_data(scene):
    folder, done = scene
    summary = json.loads(done.stdout)
    assert summary["run"] == "runs/finetune-resnet20-seed0"
    assert (summary["train_images"], summary["val_images"]) == (22, 2)
    assert summary["init"]["model"] == "resnet20"
    assert [entry["path"] for entry in summary["findings"]["skipped"]] == ["train/cat/broken.png"]
    assert {"accuracy", "macro_accuracy", "top5_accuracy"} <= summary["best"]["validation"].keys()
    assert "new: linear" in done.stderr
    assert done.stderr.index("broken.png: not a picture") < done.stderr.index("Training resnet20")
    place = json.loads((folder / summary["run"] / "data.json").read_text())
    assert place == {"path": str(folder / "pets"), "skip_damaged": True}


def test_damaged_pictures_are_an_error_that_names_the_option(scene, cifar):
    done = cifar("train", "--data", "pets", *SHORT, cwd=scene[0])
    assert done.returncode == 1
    assert "1 picture of 34 cannot be used" in done.stderr
    assert "pass --skip-damaged" in done.stderr
    assert not (scene[0] / "runs/reference-resnet20-seed0").exists()


@pytest.fixture(scope="module")
def exported(scene, cifar):
    """The process that exported the run to pets.onnx."""
    done = cifar("export", "pets.onnx", "--min-accuracy", 0.1, "--json", cwd=scene[0])
    assert done.returncode == 0, done.stderr
    return done


def test_export_needs_an_accuracy(scene, cifar):
    folder, _ = scene
    val_accuracy = load_checkpoint(folder / "runs/finetune-resnet20-seed0/best.pt").val_accuracy
    done = cifar("export", "refused.onnx", cwd=folder)
    assert done.returncode == 2
    assert f"the validation accuracy of this model is {val_accuracy:.4f}: give --min-accuracy" in done.stderr


def test_export_finds_the_pictures_and_reports_the_interval(scene, exported):
    folder, _ = scene
    assert f"Using the pictures in {folder / 'pets'}" in exported.stderr
    figures = json.loads(exported.stdout)["figures"]
    low, high = figures["test_accuracy_interval"]
    assert 0 <= low < figures["test_accuracy"] <= high <= 1
    session = onnxruntime.InferenceSession(folder / "pets.onnx", providers=["CPUExecutionProvider"])
    assert [value.shape for value in session.get_outputs()] == [["batch", 2]] * 2


def test_int8_is_calibrated_on_these_pictures(scene, cifar):
    """Few pictures are easily lost, so the gate may reject the model: only after it has run it."""
    done = cifar("export", "int8.onnx", "--precision", "int8", "--min-accuracy", 0.1, "--json", cwd=scene[0])
    assert "calibrating int8 on 24 training images" in done.stderr
    assert json.loads(done.stdout)["figures"]["test_images"] == 9


def test_evaluate_verify_and_predict_the_exported_model(scene, exported, cifar):
    folder, _ = scene
    run = cifar("evaluate", "--json", cwd=folder)
    file = cifar("evaluate", "pets.onnx", "--data", "pets", "--skip-damaged", "--json", cwd=folder)
    assert json.loads(run.stdout)["confusion"] == json.loads(file.stdout)["confusion"]
    assert cifar("evaluate", "pets.onnx", cwd=folder).stderr.endswith("name it with --data FOLDER\n")
    best = "runs/finetune-resnet20-seed0/best.pt"
    done = cifar("verify", "pets.onnx", "--checkpoint", best, "--min-accuracy", 0.1, cwd=folder)
    assert done.returncode == 0, done.stderr
    predicted = cifar("predict", "pets/test", "--model", "pets.onnx", "--format", "jsonl", "--top", 2, cwd=folder)
    labels = [json.loads(line)["label"] for line in predicted.stdout.splitlines()]
    assert len(labels) == 9
    assert set(labels) <= {"cat", "dog"}


def test_the_example_client_without_the_toolkit_predicts_own_classes(scene, exported, cifar):
    folder, _ = scene
    paths = sorted(path.relative_to(folder).as_posix() for path in (folder / "pets/test").rglob("*.png"))
    command = [sys.executable, ROOT / "examples/onnx_only.py", "pets.onnx", *paths]
    client = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    predicted = cifar("predict", "--model", "pets.onnx", "--format", "jsonl", *paths, cwd=folder)
    answers = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert len(answers) == 9
    expected = [f"{answer['path']}: {answer['label']} ({answer['probability']:.1%})" for answer in answers]
    assert client.stdout.splitlines() == expected


def test_the_graph_normalizes_by_the_statistics_of_the_run(tmp_path, cifar):
    """A run from scratch on dark pictures: PyTorch and the exported file agree, which the gate checks."""
    write_colored_folder(tmp_path / "pets", {"train/cat": 6, "train/dog": 6, "test/cat": 3, "test/dog": 3})
    options = ["--model", "resnet20", "--val-size", 0.2, "--recipe", "fast", *SHORT, "--warmup-epochs", 0]
    assert cifar("train", "--data", "pets", *options, cwd=tmp_path).returncode == 0
    checkpoint = load_checkpoint(tmp_path / "runs/fast-resnet20-seed0/best.pt")
    assert checkpoint.statistics.mean != (0.4914, 0.4822, 0.4465)
    done = cifar("export", "a.onnx", "--min-accuracy", 0.01, "--json", cwd=tmp_path)
    checks = {check["name"]: check["passed"] for check in json.loads(done.stdout)["checks"]}
    assert checks["logits, test images"] is True


def test_resume_and_seeds_name_their_data_and_weights(scene, cifar, tmp_path, monkeypatch):
    folder, _ = scene
    options = launch.LaunchOptions(data="pets", skip_damaged=True, init="shipped")
    assert options.resume_command("--resume", "x") == "cifar train --resume x --data pets --skip-damaged"
    done = cifar("train", "--resume", "finetune-resnet20-seed0", "--init", "shipped", cwd=folder)
    assert done.returncode == 2
    assert "initial weights and teacher: leave out" in done.stderr


def test_own_validation_pictures_are_used(tmp_path, cifar):
    counts = {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("a", "b")}
    write_colored_folder(tmp_path / "pets", counts)
    done = cifar("train", "--data", "pets", "--init", "shipped", "--json", *SHORT, cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert (summary["train_images"], summary["val_images"]) == (8, 8)
    assert "Validation: 10%" not in done.stderr


def test_presets_hold_a_share_out_and_a_number_that_is_too_large_is_an_error(tmp_path, cifar):
    write_split_folder(tmp_path / "pets")
    done = cifar("train", "--data", "pets", "--recipe", "fast", *SHORT, "--warmup-epochs", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Validation: 10% of the training pictures" in done.stderr
    assert "batch_size 8 exceeds the 4 training images: each epoch is one step" in done.stderr
    done = cifar("train", "--data", "pets", "--val-size", 5000, *SHORT, cwd=tmp_path)
    assert done.returncode == 2
    assert "of 6 training images in 2 classes at most 4 can be held out" in done.stderr
    assert "--init shipped starts from trained ones" in done.stderr


def test_a_hundred_classes(tmp_path, cifar):
    """Of two training pictures and one test picture each."""
    classes = {f"train/class{n}": (3 * n, 3 * n + 1) for n in range(100)} | {
        f"test/class{n}": (3 * n + 2,) for n in range(100)
    }
    write_folder(tmp_path / "many", classes)
    done = cifar("train", "--data", "many", "--init", "shipped", *SHORT, "--batch-size", 64, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = cifar("evaluate", "--json", "--plot", "pairs.png", cwd=tmp_path)
    metrics = json.loads(done.stdout)
    assert list(metrics["per_class_accuracy"])[:3] == ["class0", "class1", "class2"]
    assert metrics["macro_accuracy"] == pytest.approx(metrics["accuracy"])  # one picture of each class
    assert metrics["top5_accuracy"] >= metrics["accuracy"]
    assert Image.open(tmp_path / "pairs.png").size[0] > 100
    done = cifar("export", "many.onnx", "--min-accuracy", 0.001, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["figures"]["test_images"] == 100
    outcomes = {check["name"]: check["passed"] for check in report["checks"]}
    assert outcomes.pop("accuracy") == (metrics["accuracy"] >= 0.001)
    assert False not in outcomes.values()


def test_data_shows_a_table_and_draws_a_sheet(scene, cifar):
    folder, _ = scene
    done = cifar("data", "pets", "--skip-damaged", "--sheet", "sheet.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:6] == [
        "class  training  validation  test  share",
        "cat          12           0     5  50.0%",
        "dog          12           0     4  50.0%",
        "all          24           0     9",
    ]
    assert "skipped 1 picture that cannot be read" in done.stdout
    assert np.asarray(Image.open(folder / "sheet.png")).std() > 10
    values = json.loads(cifar("data", "--data", "pets", "--skip-damaged", "--json", cwd=folder).stdout)
    assert (values["train_count"], values["val_count"], values["test_count"]) == (24, 0, 9)
    assert values["classes"][0]["name"] == "cat"


def test_an_imbalanced_folder_is_noted_and_trains(tmp_path, cifar):
    write_colored_folder(tmp_path / "pets", {"cat": 40, "dog": 2, "emu": 1})
    done = cifar("data", "pets", cwd=tmp_path)
    assert "without test pictures: emu" in done.stdout
    assert "the largest class has 32 times the training pictures of the smallest" in done.stdout
    done = cifar("train", "--data", "pets", "--init", "shipped", *SHORT, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["val_images"] == 3
    assert find_data(str(tmp_path / "pets")).class_names == ("cat", "dog", "emu")
