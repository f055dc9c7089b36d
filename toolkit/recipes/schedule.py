"""Learning rate and crop size as pure functions of how many epochs have passed."""

import math

from toolkit.recipes.recipe import Recipe


def learning_rate(recipe: Recipe, epochs_done: float) -> float:
    """Return the learning rate of the step that begins after `epochs_done` epochs, which may be fractional.

    A linear warm-up, then cosine annealing (Loshchilov and Hutter, arXiv:1608.03983, without restarts) or linear decay
    to zero over the remaining epochs, or step decay.
    """
    if epochs_done < recipe.warmup_epochs:
        return recipe.learning_rate * epochs_done / recipe.warmup_epochs
    if recipe.lr_schedule == "step_decay":
        milestones_passed = sum(epochs_done >= milestone for milestone in recipe.lr_milestones)
        return recipe.learning_rate * recipe.lr_gamma**milestones_passed
    progress = (epochs_done - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)  # in [0, 1)
    if recipe.lr_schedule == "linear":
        return recipe.learning_rate * (1 - progress)
    return recipe.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def choose_crop_size(recipe: Recipe, epoch: int) -> int:
    """Return the side of an epoch's crops in pixels: `small_crop_size` in the first epochs, then 32."""
    augmentation = recipe.data_augmentation
    small_epochs = round(augmentation.small_crop_share * recipe.epochs)
    return augmentation.small_crop_size if epoch <= small_epochs else 32
