"""Distillation: the paper's formula, a teacher that stays as it is, and a run that keeps it and goes on exactly."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from models import build_model
from tests.support.sources import ROOT, colored_source
from tests.support.training import (
    FakeGraphs,
    SmallNetwork,
    captured,
    interrupt_after,
    losses_of,
    make_step,
    resumed_exactly,
    run_all,
    same_weights,
    train_epochs,
)
from toolkit.errors import ToolkitError, UsageError
from toolkit.recipes.recipe import Recipe, load_recipe
from toolkit.runs.checkpoint import identify_checkpoint, load_checkpoint, save_checkpoint
from toolkit.runs.folder import create_run
from toolkit.training.distillation import distillation_loss, require_fitting

TEACHING = {"distillation_weight": 0.6, "distillation_temperature": 3.0}
AUGMENTED = {"mixup_alpha": 0.2, "random_erasing": 0.5}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def small_teacher(device="cpu"):
    torch.manual_seed(11)
    return SmallNetwork().to(device, memory_format=torch.channels_last).eval()


def taught_step(weight=0.6, **options):
    device = options.get("device", "cpu")
    recipe = {**TEACHING, "distillation_weight": weight}
    return make_step(teacher=small_teacher(device), recipe=recipe, **options)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The checkpoint of a finished run, of another network than the student's."""
    recipe = Recipe.from_dict(
        {"epochs": 1, "batch_size": 50, "run": {"val_size": 20, "precision": "float32", "model": "m6"}}
    )
    run, _ = run_all(recipe, colored_source(), tmp_path_factory.mktemp("teacher"))
    return load_checkpoint(run.last)


@pytest.fixture
def student(recipe):
    """The recipe of `conftest`, with a teacher."""
    return recipe.replace(TEACHING)


def softmax(values, temperature):
    powers = np.exp(values / temperature - (values / temperature).max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_against_the_formula_in_numpy(temperature):
    values = np.random.default_rng(0).normal(scale=5, size=(2, 7, 10))
    p, q = softmax(values[0], temperature), softmax(values[1], temperature)
    expected = temperature**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    teachers, students = (torch.tensor(array, dtype=torch.float32) for array in values)
    assert distillation_loss(students, teachers, temperature).item() == pytest.approx(expected, rel=1e-4)
    assert distillation_loss(teachers, teachers, temperature).item() == pytest.approx(0, abs=1e-5)


def test_at_weight_0_the_loss_is_the_plain_one():
    assert losses_of(taught_step(0.0, augmentation=AUGMENTED)) == losses_of(make_step(augmentation=AUGMENTED))


def test_the_first_loss_is_the_weighted_sum_for_one_and_the_same_batch():
    """The teacher draws no random numbers and sees what the student sees: so all three losses are of one batch."""
    plain, taught, only = (
        losses_of(step, steps=1)[0]
        for step in (make_step(augmentation=AUGMENTED), taught_step(0.6, augmentation=AUGMENTED),
                     taught_step(1.0, augmentation=AUGMENTED))
    )  # fmt: skip
    assert taught == pytest.approx(0.4 * plain + 0.6 * only, rel=1e-5)
    assert only > 0


def test_a_student_with_its_teachers_weights_learns_nothing_from_it():
    """On the very same images the two answer alike, whatever was drawn; dropout and BatchNorm's batches are off."""
    step = make_step(teacher=small_teacher(), recipe={**TEACHING, "distillation_weight": 1.0}, augmentation=AUGMENTED)
    step.network.load_state_dict(step.teacher.state_dict())
    step.network.eval()
    assert losses_of(step, steps=3) == pytest.approx([0, 0, 0], abs=1e-5)


def test_the_teacher_is_left_as_it_is():
    step = taught_step(augmentation=AUGMENTED)
    before = copy.deepcopy(step.teacher.state_dict())
    losses_of(step)
    assert same_weights(step.teacher.state_dict(), before)
    assert not step.teacher.training
    assert all(parameter.grad is None for parameter in step.teacher.parameters())


def test_captured_steps_give_the_eager_losses():
    graphs = FakeGraphs()
    step = captured(taught_step(augmentation=AUGMENTED), graphs)
    assert losses_of(step) == losses_of(taught_step(augmentation=AUGMENTED))
    assert graphs.replays > 0


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_captured_steps_give_the_eager_losses(dtype):
    notes = []
    step = taught_step(device="cuda", dtype=dtype, mode="graph", note=notes.append)
    expected = losses_of(taught_step(device="cuda", dtype=dtype))
    assert losses_of(step) == pytest.approx(expected, rel=2e-2 if dtype == torch.bfloat16 else 1e-3)
    assert notes == []


def test_the_teacher_computes_in_the_number_format_of_the_student():
    seen = []
    step = taught_step(dtype=torch.bfloat16)
    step.teacher[0].register_forward_hook(lambda module, images, output: seen.append(output.dtype))
    losses_of(step, steps=1)
    assert seen == [torch.bfloat16]


def test_a_run_keeps_its_teacher_and_records_who_it_was(tmp_path, source, student, teacher):
    run, records = run_all(student, source, tmp_path, teacher=teacher)
    kept = load_checkpoint(run.teacher)
    assert same_weights(kept.weights, teacher.weights)
    assert kept.training is None
    identity = run.read_summary()["teacher"]
    assert identity == identify_checkpoint(teacher)
    assert identity == load_checkpoint(run.best).teacher == load_checkpoint(run.last).teacher
    assert (identity["model"], identity["recipe"]) == ("m6", teacher.recipe)
    assert len(identity["weights_sha256"]) == 64
    _, alone = run_all(student.replace({"distillation_weight": 0.0}), source, tmp_path)
    assert records[0].train_loss != alone[0].train_loss


def test_no_file_of_the_run_holds_a_path(tmp_path, source, student, teacher):
    save_checkpoint(teacher, tmp_path / "elsewhere" / "teacher.pt")
    run, _ = run_all(student, source, tmp_path / "runs", teacher=load_checkpoint(tmp_path / "elsewhere" / "teacher.pt"))
    for path in run.path.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path.name
        assert b"elsewhere" not in content, path.name


@pytest.mark.parametrize(("boundary", "ema_decay"), [(0, 0.0), (2, 0.0), (1, 0.9)])
def test_resume_is_exact_and_needs_no_teacher_to_be_named(tmp_path, source, student, teacher, boundary, ema_decay):
    recipe = student.replace({"ema_decay": ema_decay})
    whole, records = run_all(recipe, source, tmp_path, teacher=teacher)
    run = create_run(recipe, stem="broken", root=tmp_path)
    if boundary == 0:
        with pytest.raises(KeyboardInterrupt):
            train_epochs(run, source, teacher=teacher, on_progress=interrupt_after(0))
    else:
        train_epochs(run, source, boundary, teacher=teacher)
    assert resumed_exactly(run, source, whole=whole, records=records) == 3 - boundary


def test_a_run_that_was_stopped_before_anything_was_saved_takes_the_teacher_that_is_given(
    tmp_path, source, student, teacher
):
    run = create_run(student, stem="stopped", root=tmp_path)
    with pytest.raises(ToolkitError, match=r"teacher\.pt is missing"):
        train_epochs(run, source, 1, resume=True)
    train_epochs(run, source, 1, resume=True, teacher=teacher)
    assert identify_checkpoint(load_checkpoint(run.teacher)) == identify_checkpoint(teacher)


def begun(recipe, source, root, teacher):
    """A run with one epoch behind it."""
    run = create_run(recipe, stem="begun", root=root)
    train_epochs(run, source, 1, teacher=teacher)
    return run


def test_resume_refuses_another_teacher_and_none(tmp_path, source, student, teacher):
    run = begun(student, source, tmp_path, teacher)
    changed = {name: value * 1.01 if value.is_floating_point() else value for name, value in teacher.weights.items()}
    save_checkpoint(dataclasses.replace(teacher, weights=changed), run.teacher)
    with pytest.raises(ToolkitError, match="teacher.pt is not the teacher that the run began with"):
        train_epochs(run, source, resume=True)
    run.teacher.unlink()
    with pytest.raises(ToolkitError, match="teacher.pt is missing.*restore the teacher's checkpoint there"):
        train_epochs(run, source, resume=True)
    save_checkpoint(teacher, run.teacher)
    assert len(train_epochs(run, source, resume=True)) == 2


def test_a_weight_without_a_teacher_and_the_reverse(recipe, student, teacher):
    with pytest.raises(UsageError, match="distillation_weight is 0.6, but there is no teacher: name .* with --teacher"):
        require_fitting(None, student, teacher.class_names)
    with pytest.raises(UsageError, match="distillation_weight is 0, so it would teach nothing"):
        require_fitting(teacher, recipe, teacher.class_names)
    require_fitting(None, recipe, teacher.class_names)
    require_fitting(teacher, student, teacher.class_names)


@pytest.mark.parametrize(("teachers", "students", "fits"), [
    (20, 20, True), (0, 0, True), (20, 0, True), (0, 20, False), (10, 20, False), (40, 20, False),
])  # fmt: skip
def test_a_teacher_that_was_trained_on_validation_images_is_refused(student, teacher, teachers, students, fits):
    trained = Recipe.from_dict(teacher.recipe).replace({"run": {"val_size": teachers}})
    candidate = dataclasses.replace(teacher, recipe=trained.as_dict())
    recipe = student.replace({"run": {"val_size": students}})
    if fits:
        require_fitting(candidate, recipe, teacher.class_names)
        return
    message = f"trained with a val_size of {teachers}, this run holds out {students}.*Take --val-size {teachers}"
    with pytest.raises(ToolkitError, match=message):
        require_fitting(candidate, recipe, teacher.class_names)


def test_a_teacher_of_other_classes_or_other_data_is_refused(tmp_path, source, student, teacher):
    with pytest.raises(ToolkitError, match="the teacher knows the classes cat, dog, but these data have class0"):
        require_fitting(dataclasses.replace(teacher, class_names=("cat", "dog")), student, source.class_names)
    with pytest.raises(ToolkitError, match="the teacher was trained on colored .*but these data are colored"):
        run_all(student, colored_source(train=210), tmp_path, teacher=teacher)


def test_the_checksum_is_of_the_weights_and_of_nothing_else(teacher):
    sums = set()
    for changes in (
        {},
        {"epoch": 99, "training": {"seconds": 1.0}},
        {"weights": {name: value.clone() for name, value in reversed(teacher.weights.items())}},
    ):
        sums.add(identify_checkpoint(dataclasses.replace(teacher, **changes))["weights_sha256"])
    assert len(sums) == 1
    other = build_model("m6").state_dict()
    assert identify_checkpoint(dataclasses.replace(teacher, weights=other))["weights_sha256"] not in sums


def test_checkpoints_from_before_there_were_teachers_load():
    shipped = load_checkpoint(ROOT / "toolkit" / "weights" / "checkpoint.pt")
    assert shipped.teacher is None
    shipped.network()


def test_the_preset_for_a_teacher_names_the_largest_network():
    assert load_recipe("teacher").run.model == "m6"
