"""Checkpoints: plain values only, whole or not at all, and nothing in a foreign file is executed."""

import pickle
from pathlib import Path

import pytest
import torch

from models import build_model
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def checkpoint(**changes) -> Checkpoint:
    torch.manual_seed(0)
    values = {
        "model": "resnet20",
        "model_args": {"num_classes": 10, "dropout_rate": 0.3},
        "class_names": tuple("abcdefghij"),
        "recipe": {"epochs": 3, "run": {"seed": 0}},
        "data": {"name": "colored", "train_sha256": "0" * 64},
        "epoch": 3,
        "val_accuracy": 0.5,
        "weights": build_model("resnet20").state_dict(),
    }
    return Checkpoint(**(values | changes))


def test_comes_back(tmp_path):
    saved = checkpoint()
    save_checkpoint(saved, tmp_path / "best.pt")
    loaded = load_checkpoint(tmp_path / "best.pt")
    assert (loaded.model, loaded.class_names, loaded.recipe) == (saved.model, saved.class_names, saved.recipe)
    assert all(torch.equal(value, saved.weights[name]) for name, value in loaded.weights.items())
    images = torch.randn(2, 3, 32, 32)
    expected = build_model("resnet20")
    expected.load_state_dict(saved.weights)
    assert torch.equal(loaded.network()(images), expected.eval()(images))


def test_no_temporary_file_is_left(tmp_path):
    save_checkpoint(checkpoint(), tmp_path / "best.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


@pytest.mark.hostile
def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError("half way")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


@pytest.mark.hostile
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolkitError, match="cannot write .*best.pt"):
        save_checkpoint(checkpoint(), tmp_path / "file" / "best.pt")


class Malicious:
    """Unpickling this would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "executed"))


@pytest.mark.hostile
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, how):
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(target)))
    else:
        torch.save({"weights": Malicious(target)}, path)
    with pytest.raises(ToolkitError, match="not a checkpoint that can be read safely"):
        load_checkpoint(path)
    assert not target.exists()


@pytest.mark.hostile
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello world", bytes(1000)])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ToolkitError, match="not a checkpoint" if content else "is empty"):
        load_checkpoint(path)


@pytest.mark.hostile
def test_truncated_checkpoint(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(checkpoint(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ToolkitError, match="not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.hostile
def test_other_torch_files_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.pt")
    with pytest.raises(ToolkitError, match="not a checkpoint of this toolkit"):
        load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(ToolkitError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.hostile
def test_weights_that_do_not_fit_the_named_network():
    with pytest.raises(ToolkitError, match="does not fit the model 'm6'"):
        checkpoint(model="m6").network()
    with pytest.raises(ToolkitError, match="names the model 'vgg'; known are resnet20"):
        checkpoint(model="vgg").network()
