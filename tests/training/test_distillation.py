"""Distillation: the formula of the paper, views that are computed once, and runs that keep their teacher."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.sources import colored_images, colored_source
from tests.support.training import (
    FakeGraphs,
    captured,
    interrupt_after,
    losses_of,
    make_step,
    resumed_exactly,
    same_weights,
    train_epochs,
)
from toolkit.data.channels import normalize
from toolkit.errors import ToolkitError, UsageError
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import identify_checkpoint, load_checkpoint, save_checkpoint
from toolkit.runs.folder import create_run
from toolkit.runs.seeds import begin_seeds
from toolkit.training.augment import Windows, cut_windows, pad
from toolkit.training.distillation import Teacher, View, distillation_loss, require_fitting_teacher

AUGMENTED = {"crop_padding": 4, "mixup_alpha": 0.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The checkpoint of a finished run of another network than the student's."""
    recipe = Recipe.from_dict(
        {"epochs": 1, "batch_size": 50, "run": {"val_size": 20, "precision": "float32", "model": "m6"}}
    )
    run = create_run(recipe, stem="teacher", root=tmp_path_factory.mktemp("teacher"))
    train_epochs(run, colored_source())
    return load_checkpoint(run.last)


@pytest.fixture
def student(recipe):
    """The recipe of `conftest`, with a teacher."""
    return recipe.replace({"distillation_weight": 0.6, "distillation_temperature": 3.0, "teacher_views": 2})


def distill(recipe, source, root, teacher, **options):
    run = create_run(recipe, stem="run", root=root, teacher=teacher)
    return run, train_epochs(run, source, **options)


def make_view(*, crop_size=32, seed=5):
    """Random windows of the 40 images of `make_step`, with random logits."""
    generator = torch.Generator().manual_seed(seed)
    top, left = torch.randint(0, 40 - crop_size + 1, (2, 40, 1), generator=generator)
    mirror = torch.rand(40, 1, generator=generator) < 0.5
    logits = 5 * torch.randn(40, 10, generator=generator)
    return View(Windows(top, left, mirror), logits.half())


def distilling_step(weight=0.6, *, view=None, **options):
    values = {"distillation_weight": weight, "distillation_temperature": 3.0}
    step = make_step(recipe=values, augmentation=options.pop("augmentation", AUGMENTED), **options)
    step.set_view(view or make_view())
    return step


def softmax(values, temperature):
    powers = np.exp(values / temperature - (values / temperature).max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_loss_equals_the_formula_in_numpy(temperature):
    values = np.random.default_rng(0).normal(scale=5, size=(2, 7, 10))
    p, q = softmax(values[0], temperature), softmax(values[1], temperature)
    expected = temperature**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    teachers, students = (torch.tensor(array, dtype=torch.float32) for array in values)
    assert distillation_loss(students, teachers, temperature).item() == pytest.approx(expected, rel=1e-4)
    assert distillation_loss(teachers, teachers, temperature).item() == pytest.approx(0, abs=1e-5)


def test_the_first_loss_is_the_weighted_sum():
    """A view fixes the windows, so all three losses are of the same batch."""
    labels, both, logits = (losses_of(distilling_step(weight), steps=1)[0] for weight in (0.0, 0.6, 1.0))
    assert both == pytest.approx(0.4 * labels + 0.6 * logits, rel=1e-5)
    assert abs(labels - logits) > 0.1


def test_a_step_trains_on_the_windows_of_its_view():
    step, view = distilling_step(0.0), make_view()
    indices = torch.arange(8)
    batch = cut_windows(step.images, indices, view.windows.select(indices), size=32)
    step.network.train()
    logits = step.network(normalize(batch, statistics=step.statistics))
    expected = torch.nn.functional.cross_entropy(logits, step.labels[:8]).item()
    step(indices, 0.0)
    assert step.take_sums()[0] / 8 == pytest.approx(expected, rel=1e-5)


def test_mixup_mixes_the_teachers_answers_by_the_weight_of_the_labels():
    """With one-hot logits at temperature 1, the teacher's loss is that of the labels, less an entropy of 0."""
    labels = colored_images(40, seed=0).labels
    view = make_view()
    view.logits.copy_(torch.nn.functional.one_hot(labels, 10).half() * 100)
    mixed = {**AUGMENTED, "mixup_alpha": 1.0}
    steps = [
        make_step(augmentation=mixed, recipe={"distillation_weight": weight, "distillation_temperature": 1.0})
        for weight in (0.0, 1.0)
    ]
    for step in steps:
        step.set_view(view)
    plain, taught = (losses_of(step, steps=3) for step in steps)
    assert taught == pytest.approx(plain, rel=1e-3)


def test_captured_steps_follow_a_change_of_the_view():
    def train(step):
        losses = []
        for seed in (1, 2, 3):
            step.set_view(make_view(seed=seed))
            losses += losses_of(step)
        return losses

    graphs = FakeGraphs()
    eager, replayed = train(distilling_step()), train(captured(distilling_step(), graphs))
    assert replayed == eager
    assert graphs.replays > 0


def test_a_view_does_not_change_that_was_given_to_a_step():
    step, first = distilling_step(), make_view(seed=1)
    kept = first.clone()
    step.set_view(first)
    step.set_view(make_view(seed=2))
    assert torch.equal(first.logits, kept.logits)
    assert torch.equal(first.windows.top, kept.windows.top)


def test_a_view_holds_the_teachers_logits_of_its_windows_and_is_computed_once(teacher):
    images = pad(colored_images(30, seed=1).images, 4)
    recipe = Recipe.from_dict({"teacher_views": 2, "data_augmentation": AUGMENTED})
    passes = []
    views = Teacher(teacher, recipe=recipe, images=images, dtype=torch.float32)
    views.network.register_forward_hook(lambda *_: passes.append(1))
    first, second, third = (views.view(epoch, 32) for epoch in (1, 2, 3))
    assert third is first  # two views in turn
    assert len(passes) == 2
    assert not torch.equal(first.windows.top, second.windows.top)
    batch = cut_windows(images, torch.arange(30), first.windows, size=32)
    with torch.no_grad():
        expected = teacher.network().eval()(normalize(batch, statistics=teacher.statistics))
    torch.testing.assert_close(first.logits, expected.half(), rtol=2e-3, atol=2e-3)
    small = views.view(1, 24)
    assert small.windows.top.max() > 8  # of 17 offsets
    again = Teacher(teacher, recipe=recipe, images=images, dtype=torch.float32).view(1, 24)
    assert torch.equal(small.logits, again.logits)  # so a resumed run trains on the same views


def test_a_run_keeps_and_records_its_teacher(tmp_path, source, student, teacher):
    run, records = distill(student, source, tmp_path, teacher)
    kept = load_checkpoint(run.teacher)
    assert same_weights(kept.weights, teacher.weights)
    assert kept.training is None
    identity = run.read_summary()["teacher"]
    assert identity == identify_checkpoint(teacher)
    assert identity == load_checkpoint(run.best).teacher == load_checkpoint(run.last).teacher
    assert (identity["model"], identity["recipe"]) == ("m6", teacher.recipe)
    _, alone = distill(student.replace({"distillation_weight": 0.0}), source, tmp_path, None)
    assert records[0].train_loss != alone[0].train_loss


@pytest.mark.parametrize("boundary", [0, 1, 2])
def test_resume_is_exact(tmp_path, source, student, teacher, boundary):
    whole, records = distill(student, source, tmp_path, teacher)
    run = create_run(student, stem="broken", root=tmp_path, teacher=teacher)
    if boundary == 0:
        with pytest.raises(KeyboardInterrupt):
            train_epochs(run, source, on_progress=interrupt_after(0))
    else:
        train_epochs(run, source, boundary)
    assert resumed_exactly(run, source, whole=whole, records=records) == 3 - boundary


def test_resume_rejects_another_teacher_and_none(tmp_path, source, student, teacher):
    run = create_run(student, stem="begun", root=tmp_path, teacher=teacher)
    train_epochs(run, source, 1)
    changed = {name: value * 1.01 if value.is_floating_point() else value for name, value in teacher.weights.items()}
    save_checkpoint(dataclasses.replace(teacher, weights=changed), run.teacher)
    with pytest.raises(ToolkitError, match=r"teacher\.pt does not hold the teacher that the run began with"):
        train_epochs(run, source, resume=True)
    run.teacher.unlink()
    with pytest.raises(UsageError, match=r"there is no teacher\.pt"):
        train_epochs(run, source, resume=True)


def test_several_seeds_share_a_teacher_and_reject_another(tmp_path, source, student, teacher):
    seed_runs = begin_seeds(student, seeds=2, source=source, name="seeds", root=tmp_path, teacher=teacher)
    assert all(load_checkpoint(run.teacher).weights.keys() == teacher.weights.keys() for run in seed_runs.runs)
    begin_seeds(student, seeds=2, source=source, name="seeds", root=tmp_path, teacher=teacher)
    with pytest.raises(ToolkitError, match="seed0 has another teacher: use the same --teacher"):
        begin_seeds(student, seeds=2, source=source, name="seeds", root=tmp_path)


def require(teacher, recipe, *, class_names=None, identity=None, own_val=False):
    class_names, identity = class_names or teacher.class_names, identity or teacher.data
    require_fitting_teacher(teacher, recipe, class_names, identity, own_val=own_val)


def test_a_weight_without_a_teacher_and_the_reverse(recipe, student, teacher):
    message = r"distillation_weight is 0\.6, but there is no teacher\.pt: .*`create_run` a `teacher`"
    with pytest.raises(UsageError, match=message):
        require(None, student, class_names=teacher.class_names, identity=teacher.data)
    with pytest.raises(UsageError, match="distillation_weight is 0, so the teacher has no effect"):
        require(teacher, recipe)
    require(None, recipe, class_names=teacher.class_names, identity=teacher.data)


@pytest.mark.parametrize(("teachers", "students", "own_val", "fits"), [
    (20, 20, False, True), (0, 0, False, True), (20, 0, False, True), (0, 20, True, True), (0, 20, False, False),
    (10, 20, False, False), (40, 20, False, False),
])  # fmt: skip
def test_a_teacher_is_rejected_that_was_trained_on_validation_images(
    student, teacher, teachers, students, own_val, fits
):
    trained = Recipe.from_dict(teacher.recipe).replace({"run": {"val_size": teachers}})
    candidate = dataclasses.replace(teacher, recipe=trained.as_dict())
    recipe = student.replace({"run": {"val_size": students}})
    if fits:
        require(candidate, recipe, own_val=own_val)
        return
    message = (
        f"the teacher's weights were trained on these data with a val_size of {teachers}, and this run holds out "
        f"{students}.*Use --val-size {teachers}"
    )
    with pytest.raises(ToolkitError, match=message):
        require(candidate, recipe, own_val=own_val)


def test_a_teacher_of_other_classes_or_other_data_is_rejected(tmp_path, source, student, teacher):
    with pytest.raises(ToolkitError, match="the teacher has the classes cat, dog, and these data have class0"):
        require(dataclasses.replace(teacher, class_names=("cat", "dog")), student, class_names=source.class_names)
    with pytest.raises(ToolkitError, match=r"the teacher was trained on colored .*but these data are colored"):
        distill(student, colored_source(train=210), tmp_path, teacher)


def test_checkpoints_without_the_key_load(teacher, tmp_path):
    save_checkpoint(teacher, tmp_path / "checkpoint.pt")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content.pop("teacher", None) is None
    torch.save(content, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path / "checkpoint.pt").teacher is None
