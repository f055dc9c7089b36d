"""Distillation from a trained network, the teacher (Hinton et al., arXiv:1503.02531)."""

import torch.nn.functional as F
from torch import Tensor

from toolkit.errors import ToolkitError, UsageError
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import Checkpoint


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the probabilities that the temperature T softens: mean over the batch, nats.

    Section 2 of the paper: by the factor T^2 the gradients keep their size whatever the temperature. The paper has the
    cross entropy with the teacher's probabilities, which differs from this by a constant, their entropy.

    Args:
        logits: the student's, float32 (B, K).
        teacher_logits: likewise, without gradients.
        temperature: T, above 0.

    Returns:
        float32 ().
    """
    student, teacher = (F.log_softmax(values / temperature, dim=1) for values in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def require_fitting(teacher: Checkpoint | None, recipe: Recipe, class_names: tuple[str, ...]) -> None:
    """Check that recipe and teacher fit each other.

    The validation images follow from their number alone. So they are images that the teacher was not trained on if
    both hold out equally many.

    Raises:
        UsageError: a distillation weight without a teacher, or the reverse.
        ToolkitError: the teacher has other classes, or may have been trained on the student's validation images.
    """
    weight, held_out = recipe.distillation_weight, recipe.run.val_size
    if teacher is None:
        if weight > 0:
            raise UsageError(
                f"distillation_weight is {weight:g}, but there is no teacher: name a run or a checkpoint with "
                "--teacher (an earlier run by this recipe keeps its own as teacher.pt), or set the weight to 0"
            )
        return
    if weight == 0:
        raise UsageError(
            "a teacher was given, but distillation_weight is 0, so it would teach nothing: "
            "give --distillation-weight above 0 as well, or leave the teacher out"
        )
    if teacher.class_names != class_names:
        raise ToolkitError(
            f"the teacher knows the classes {', '.join(teacher.class_names)}, but these data have "
            f"{', '.join(class_names)}: take a teacher that was trained on these data, or name its own with --data"
        )
    teachers = Recipe.from_dict(teacher.recipe, where="the teacher's recipe").run.val_size
    if held_out not in (0, teachers):
        raise ToolkitError(
            f"the teacher was trained with a val_size of {teachers:g}, this run holds out {held_out:g}: it may have "
            f"seen images that its student is validated on. Take --val-size {teachers:g}, or train a teacher with "
            f"--val-size {held_out:g}"
        )
