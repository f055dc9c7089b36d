"""The loop: what it trains on; that it repeats itself, resumes exactly and agrees with a plain loop."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from tests.support.sources import ROOT, FixedSource, colored_images, colored_source
from tests.support.training import (
    interrupt_after,
    losses,
    resumed_exactly,
    run_all,
    same_weights,
    train_epochs,
    weights_of,
)
from toolkit.data.channels import compute_channel_statistics, normalize
from toolkit.data.images import Images
from toolkit.data.split import split_images
from toolkit.errors import ToolkitError, UsageError
from toolkit.recipes.recipe import Recipe
from toolkit.recipes.schedule import choose_crop_size
from toolkit.runs.checkpoint import load_checkpoint
from toolkit.runs.folder import create_run, find_newest_finished_run
from toolkit.training.optimizers import make_optimizer
from toolkit.training.step import TrainingStep
from toolkit.training.trainer import train


def test_learns_and_fills_the_run_folder(tmp_path, source):
    recipe = Recipe.from_dict({"epochs": 6, "batch_size": 16, "run": {"val_size": 20, "precision": "float32"}})
    run, records = run_all(recipe.replace({"data_augmentation": {"mixup_alpha": 0.0}}), source, tmp_path)
    assert records[-1].val_accuracy > 0.5  # chance is 0.1; 20 images leave much to rounding
    assert {p.name for p in run.path.iterdir()} == {
        ".lock", "recipe.toml", "metrics.jsonl", "best.pt", "last.pt", "summary.json", "curves.png", "confusion.png",
    }  # fmt: skip
    assert run.read_metrics() == [dataclasses.asdict(record) for record in records]
    summary = run.read_summary()
    assert summary["parameters"] == 272_474
    assert (summary["train_images"], summary["val_images"]) == (180, 20)
    assert summary["best"]["validation"]["accuracy"] == max(record.val_accuracy for record in records)
    last = summary["last"]
    assert last["generalisation_gap"] == last["train_accuracy"] - last["val_accuracy"]
    assert load_checkpoint(run.best).epoch == summary["best"]["epoch"]
    assert find_newest_finished_run(root=tmp_path) == run


@pytest.mark.slow
def test_same_seed_same_run_and_another_seed_another(tmp_path, source, recipe):
    first, a = run_all(recipe, source, tmp_path)
    second, b = run_all(recipe, source, tmp_path)
    third, c = run_all(recipe.replace({"run": {"seed": 1}}), source, tmp_path)
    assert losses(a) == losses(b) != losses(c)
    assert same_weights(weights_of(first.last), weights_of(second.last))
    assert not same_weights(weights_of(first.last), weights_of(third.last))


@pytest.mark.parametrize(
    ("optimizer", "boundary"),
    [
        ("Muon", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("SGD", 0), ("SGD", 1), ("SGD", 2), ("Adam", 1)]),
    ],
)
def test_resume_is_exact_from_every_epoch_boundary(tmp_path, source, recipe, optimizer, boundary):
    recipe = recipe.replace({"optimizer": optimizer, "learning_rate": {"Adam": 1e-3}.get(optimizer, 0.05)})
    whole, records = run_all(recipe, source, tmp_path)
    run = create_run(recipe, stem="broken", root=tmp_path)
    if boundary == 0:  # interrupted in the first epoch
        with pytest.raises(KeyboardInterrupt):
            train_epochs(run, source, on_progress=interrupt_after(1))
    else:
        train_epochs(run, source, boundary)
    torch.manual_seed(987)  # the state of the generators must not matter
    assert resumed_exactly(run, source, whole=whole, records=records) == 3 - boundary


def test_a_run_is_resumed_with_the_optimizer_options_of_the_present_device(tmp_path, source, recipe):
    """A checkpoint that was saved on CUDA holds options that the CPU does not allow."""
    recipe = recipe.replace({"optimizer": "Adam", "learning_rate": 1e-3})
    whole, records = run_all(recipe, source, tmp_path)
    run = create_run(recipe, stem="moved", root=tmp_path)
    train_epochs(run, source, 1)
    checkpoint = torch.load(run.last, weights_only=True)
    for group in checkpoint["training"]["optimizer"]["param_groups"]:
        group["capturable"] = group["fused"] = True
    torch.save(checkpoint, run.last)
    assert resumed_exactly(run, source, whole=whole, records=records) == 2


def test_metrics_of_an_epoch_that_will_be_repeated_are_dropped(tmp_path, source, recipe):
    run = create_run(recipe, stem="run", root=tmp_path)
    train_epochs(run, source, 1)
    run.append_metrics({"epoch": 2, "train_loss": 0.0})  # written just before the process was killed
    with run.metrics.open("a") as file:
        file.write('{"epoch": 3, "tra')
    (run.path / ".last.pt.x1y2.partial").write_bytes(b"half a checkpoint")
    train_epochs(run, source, resume=True)
    assert [record["epoch"] for record in run.read_metrics()] == [1, 2, 3]
    assert run.read_metrics()[1]["train_loss"] > 0
    assert not list(run.path.glob("*.partial"))
    assert not list(run.path.glob(".*.partial"))


def test_resume_refuses_other_data(tmp_path, source, recipe):
    run, _ = run_all(recipe, source, tmp_path)
    with pytest.raises(ToolkitError, match="was trained on"):
        train_epochs(run, colored_source(train=210), resume=True)


def test_resume_refuses_a_recipe_that_was_edited(tmp_path, source, recipe):
    """Another split would report validation images that the network was trained on."""
    run = create_run(recipe, stem="run", root=tmp_path)
    train_epochs(run, source, 1)
    (run.path / "recipe.toml").write_text(recipe.replace({"run": {"val_size": 10}}).as_toml())
    with pytest.raises(ToolkitError, match="recipe.toml differs from the recipe in last.pt: undo the change"):
        train_epochs(run, source, resume=True)


def test_resume_of_a_run_that_was_stopped_before_it_began_begins(tmp_path, source, recipe):
    run = create_run(recipe, stem="run", root=tmp_path)
    assert len(train_epochs(run, source, resume=True)) == 3


@pytest.mark.slow
def test_resume_of_a_run_that_lost_its_last_checkpoint_begins_anew(tmp_path, source, recipe):
    run, records = run_all(recipe, source, tmp_path)
    run.last.unlink()
    assert len(train_epochs(run, source, resume=True)) == 3
    assert [line["train_loss"] for line in run.read_metrics()] == [record.train_loss for record in records]


def test_two_processes_do_not_train_one_run(tmp_path, source, recipe):
    run = create_run(recipe, stem="run", root=tmp_path)
    with run.lock(), pytest.raises(ToolkitError, match="another process is training in"):
        train_epochs(run, source)
    assert len(train_epochs(run, source)) == 3


def test_a_resumed_run_without_its_metrics_still_ends(tmp_path, source, recipe):
    run = create_run(recipe, stem="run", root=tmp_path)
    train_epochs(run, source, 3)
    run.metrics.unlink()
    assert train_epochs(run, source, resume=True) == []
    assert run.read_summary()["epochs"] == 3


def test_a_validation_size_is_taken_at_its_word(source):
    train_images, val_images = split_images(source.train(), 60)
    assert (len(train_images), len(val_images)) == (140, 60)
    with pytest.raises(
        UsageError, match="a validation size of 5000 is too large: of 200 training images in 10 classes at most 190"
    ):
        split_images(source.train(), 5000)


def test_last_checkpoint_is_there_before_the_first_step(tmp_path, source, recipe):
    run = create_run(recipe, stem="run", root=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_epochs(run, source, on_progress=interrupt_after(0))
    assert load_checkpoint(run.last).epoch == 0


def test_each_training_image_is_seen_once_an_epoch_and_no_validation_image(tmp_path, recipe, monkeypatch):
    """The images are recognized by what the step is given: no augmentation, a label for each image."""
    numbers = torch.arange(100)
    images = numbers.to(torch.uint8)[:, None, None, None].expand(100, 3, 32, 32).contiguous()  # gray level = number
    source = FixedSource("grays", None, tuple("abcdefghij"), Images(images=images, labels=numbers % 10))
    recipe = recipe.replace({"run": {"val_size": 10}, "batch_size": 32})
    _, held_out = split_images(source.train(), 10)
    seen = []
    original = TrainingStep.__call__

    def spying(self, indices, rate, **options):
        seen.append(self.images[indices, 16, 16, 0].tolist())
        original(self, indices, rate, **options)

    monkeypatch.setattr(TrainingStep, "__call__", spying)
    run_all(recipe, source, tmp_path)
    batches_an_epoch = 3  # 32 + 32 + 26
    epochs = [list(chain(*seen[i : i + batches_an_epoch])) for i in range(0, len(seen), batches_an_epoch)]
    expected = sorted(set(range(100)) - set(held_out.images[:, 0, 0, 0].tolist()))
    assert len(epochs) == 3
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_test_labels_and_images_change_nothing(tmp_path, recipe):
    """A run on data without any test images, and one on data with permuted test labels, come out the same."""
    train_images, test = colored_images(200, seed=0), colored_images(50, seed=1)
    permuted = Images(images=test.images, labels=test.labels.flip(0))
    runs = []
    for test_images in (None, test, permuted):
        source = FixedSource("colored", None, tuple("abcdefghij"), train_images, test_images)
        runs.append(run_all(recipe, source, tmp_path))
    for run, records in runs[1:]:
        assert losses(records) == losses(runs[0][1])
        assert same_weights(weights_of(run.last), weights_of(runs[0][0].last))


def test_validation_size_zero_trains_on_all_and_keeps_the_last_epoch(tmp_path, source, recipe):
    run, records = run_all(recipe.replace({"run": {"val_size": 0}}), source, tmp_path)
    summary = run.read_summary()
    assert (summary["train_images"], summary["val_images"]) == (200, 0)
    assert records[-1].val_accuracy is None
    assert summary["last"]["generalisation_gap"] is None
    assert load_checkpoint(run.best).epoch == 3
    assert same_weights(weights_of(run.best), weights_of(run.last))
    assert not (run.path / "confusion.png").exists()


def test_early_stopping_ends_after_the_patience(tmp_path, source, recipe):
    recipe = recipe.replace({"epochs": 50, "early_stopping": 2, "learning_rate": 0.0})
    run, records = run_all(recipe, source, tmp_path)  # nothing is learned: BatchNorm's statistics alone move
    best = run.read_summary()["best"]["epoch"]
    assert len(records) == best + 2 < 50


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_boundary(tmp_path, source, recipe):
    recipe = recipe.replace({"learning_rate": 1e6, "lr_schedule": "linear", "warmup_epochs": 0})
    run = create_run(recipe, stem="run", root=tmp_path)
    with pytest.raises(ToolkitError, match="loss of epoch 1 is not finite.*Try a learning rate below"):
        train_epochs(run, source)
    assert load_checkpoint(run.last).epoch == 0
    assert all(value.isfinite().all() for value in weights_of(run.last).values())
    assert not run.is_finished


def test_unknown_device(tmp_path, source, recipe):
    with pytest.raises(UsageError, match="cannot use the device 'gpu': the devices are auto, cpu, cuda, cuda:N"):
        train(recipe, source=source, run=create_run(recipe, stem="run", root=tmp_path), device="gpu")


@pytest.mark.parametrize(("optimizer", "rate"), [("SGD", 3e-3), pytest.param("Adam", 1e-4, marks=pytest.mark.slow)])
def test_against_a_plain_loop(tmp_path, source, optimizer, rate):
    """Two epochs without augmentation and dropout, beside the textbook's loop written out here."""
    recipe = Recipe.from_dict(
        {
            "optimizer": optimizer, "learning_rate": rate, "lr_schedule": "linear", "epochs": 2, "batch_size": 50,
            "dropout_rate": 0.0, "weight_decay": 1e-2,
            "data_augmentation": {"random_crop": False, "horizontal_flip": False, "mixup_alpha": 0.0},
            "run": {"val_size": 0, "seed": 5, "precision": "float32"},
        }
    )  # fmt: skip
    _, records = run_all(recipe, source, tmp_path)

    images, labels = source.train().images, source.train().labels
    images = normalize(images, statistics=compute_channel_statistics(images))
    torch.manual_seed(5 << 20)
    network = build_model("resnet20", dropout_rate=0.0)
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0}]
    plain = (
        torch.optim.SGD(groups, lr=rate, momentum=0.9, foreach=False)
        if optimizer == "SGD"
        else torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.999), foreach=False)
    )
    for epoch in (1, 2):
        torch.manual_seed((5 << 20) + epoch)
        total, right = 0.0, 0
        for number, batch in enumerate(torch.randperm(200).split(50)):
            for group in plain.param_groups:
                group["lr"] = rate * (1 - (epoch - 1 + number / 4) / 2)
            logits = network(images[batch])
            loss = F.cross_entropy(logits, labels[batch])
            plain.zero_grad()
            loss.backward()
            plain.step()
            total += loss.item() * 50
            right += (logits.argmax(1) == labels[batch]).sum().item()
        record = records[epoch - 1]
        assert record.train_loss == pytest.approx(total / 200, rel=2e-3)
        assert record.train_accuracy == pytest.approx(right / 200, abs=0.011)


def test_weight_decay_acts_on_convolution_and_linear_weights_alone():
    network = build_model("resnet20")
    decayed, others = make_optimizer(network, Recipe(weight_decay=0.1)).param_groups
    kinds = {id(p): type(m) for m in network.modules() for p in m.parameters(recurse=False)}
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert {kinds[id(p)] for p in decayed["params"]} == {torch.nn.Conv2d, torch.nn.Linear}
    assert {id(p) for p in others["params"]} == {id(p) for p in network.parameters() if p.ndim == 1}


def test_bfloat16_trains_too(tmp_path, source, recipe):
    _, records = run_all(recipe.replace({"epochs": 1, "run": {"precision": "bfloat16"}}), source, tmp_path)
    assert 0 < records[0].train_loss < 5


def test_crop_size_grows_at_the_share_of_the_epochs():
    recipe = Recipe.from_dict({"epochs": 10, "data_augmentation": {"small_crop_size": 24, "small_crop_share": 0.3}})
    assert [choose_crop_size(recipe, epoch) for epoch in (1, 3, 4, 10)] == [24, 24, 32, 32]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_last_boundary_and_says_how_to_go_on(tmp_path, number):
    command = [sys.executable, str(ROOT / "cli.py"), "train", "--data", "demo", "--recipe", "demo", "--epochs", "1000"]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores SIGINT
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    last = tmp_path / "runs" / "demo-resnet20-seed0" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "cifar train --resume runs/demo-resnet20-seed0 --data demo" in errors.replace("\n", " ")
    assert "Traceback" not in errors
    assert load_checkpoint(last).training is not None


def test_summary_is_plain_json_without_paths(tmp_path, source, recipe):
    run, _ = run_all(recipe, source, tmp_path)
    text = run.summary.read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["data"]["name"] == "colored"
