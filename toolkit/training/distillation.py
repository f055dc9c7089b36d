"""Distillation: a trained network, the teacher, classifies some augmented views of each image once, for all epochs.

A view is a window of each image, mirrored or not, drawn once and reused. Each epoch trains on one view, in turn, so the
teacher's forward passes are limited by the number of views, not of epochs. Logits of stored augmented images: Shen and
Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", arXiv:2112.01528.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.data.dataset import require_same_data
from toolkit.errors import ToolkitError, UsageError
from toolkit.evaluation.metrics import compute_logits
from toolkit.files import escape
from toolkit.recipes.recipe import Recipe, load_recipe
from toolkit.runs.checkpoint import Checkpoint
from toolkit.training.augment import Windows, cut_windows, draw_windows
from toolkit.training.initialize import require_unseen_validation

TEACHER_RECIPE = "teacher"  # preset of the teacher that a recipe with distillation trains, if none is named

_CHUNK = 5000  # images of a view that are cut out at once: 15 MB


@dataclass(frozen=True)
class View:
    """A window of each of N training images, and the teacher's answers.

    Attributes:
        windows: of all N images.
        logits: the teacher's, float16 (N, K).
    """

    windows: Windows
    logits: Tensor

    def clone(self) -> "View":
        """A copy of all tensors."""
        windows = self.windows
        return View(Windows(windows.top.clone(), windows.left.clone(), windows.mirror.clone()), self.logits.clone())

    def copy_from(self, other: "View") -> None:
        """Overwrite the tensors in place: captured steps read them at these addresses."""
        for name in ("top", "left", "mirror"):
            getattr(self.windows, name).copy_(getattr(other.windows, name))
        self.logits.copy_(other.logits)


class Teacher:
    """The views of a run. Each is computed when an epoch first uses it, and kept (1.8 MB with CIFAR-10).

    Windows depend on the view's number and on the crop size, not on the run's seed.

    Args:
        checkpoint: the trained network; it normalizes images by its own statistics.
        recipe: augmentation and number of views.
        images: the padded training images (`augment.pad`), uint8 (N, S, S, 3), on the device of training.
        dtype: number format of the forward pass.
    """

    def __init__(self, checkpoint: Checkpoint, *, recipe: Recipe, images: Tensor, dtype: torch.dtype) -> None:
        self.network = checkpoint.network().to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.statistics = checkpoint.statistics
        self.recipe, self.images, self.dtype = recipe, images, dtype
        self._views: dict[tuple[int, int], View] = {}

    def view(self, epoch: int, crop_size: int) -> View:
        """The view of an epoch, counted from 1."""
        key = ((epoch - 1) % self.recipe.teacher_views, crop_size)
        if key not in self._views:
            self._views[key] = self._compute_view(*key)
        return self._views[key]

    def _compute_view(self, number: int, crop_size: int) -> View:
        augmentation, device = self.recipe.data_augmentation, self.images.device
        windows = draw_windows(
            len(self.images),
            room=self.images.shape[1] - crop_size,
            random_crop=augmentation.random_crop,
            horizontal_flip=augmentation.horizontal_flip,
            device=torch.device("cpu"),  # the same on every device
            generator=torch.Generator().manual_seed((crop_size << 20) + number),
        ).to(device)
        logits = [
            compute_logits(
                self.network,
                cut_windows(self.images, indices, windows.select(indices), size=crop_size),
                statistics=self.statistics,
                dtype=self.dtype,
            )
            for indices in torch.arange(len(self.images), device=device).split(_CHUNK)
        ]
        return View(windows, torch.cat(logits).to(device, torch.float16))


def make_teacher_recipe(student: Recipe) -> Recipe:
    """The recipe of the teacher that is trained for a student: the preset `teacher`, with the same images held out."""
    run = {"val_size": student.run.val_size, "precision": student.run.precision}
    return load_recipe(TEACHER_RECIPE).replace({"run": run})


def require_fitting_teacher(
    teacher: Checkpoint | None, recipe: Recipe, class_names: tuple[str, ...], identity: dict[str, str], *, own_val: bool
) -> None:
    """Check that a run's teacher and recipe fit each other.

    Args:
        teacher: None in a run without one.
        recipe: of the run.
        class_names: of the run.
        identity: of the training images.
        own_val: whether the data set has validation images of its own.

    Raises:
        UsageError: a distillation weight without a teacher, or the reverse.
        ToolkitError: the teacher has other classes, or was trained on other data or with another `val_size`.
    """
    if teacher is None:
        if recipe.distillation_weight > 0:
            raise UsageError(
                f"distillation_weight is {recipe.distillation_weight:g}, but there is no teacher.pt: `cifar train` "
                "writes it for a new run; in a program, give `create_run` a `teacher`, or set distillation_weight to 0"
            )
        return
    if recipe.distillation_weight == 0:
        raise UsageError("distillation_weight is 0, so the teacher has no effect: set it above 0")
    if teacher.class_names != class_names:
        raise ToolkitError(
            f"the teacher has the classes {', '.join(map(escape, teacher.class_names))}, and these data have "
            f"{', '.join(map(escape, class_names))}: use a teacher that was trained on these data"
        )
    require_same_data(teacher.data, identity, what="the teacher")
    if not own_val:
        require_unseen_validation(teacher, recipe, identity, what="the teacher's weights")


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) between the probabilities at temperature T: mean over the batch, nats.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2: the factor T^2
    keeps the size of the gradients at any temperature. The paper's cross-entropy differs from this by a constant.

    Args:
        logits: the student's, float32 (B, K).
        teacher_logits: the teacher's, likewise, without gradients.
        temperature: T, above 0.

    Returns:
        float32 ().
    """
    student, teacher = (F.log_softmax(values / temperature, dim=1) for values in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
