"""Initial weights from another checkpoint: find it, check that it may be used, and load the layers that fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.errors import ToolkitError
from toolkit.files import escape
from toolkit.recipes.recipe import Recipe
from toolkit.runs.checkpoint import SHIPPED_CHECKPOINT, Checkpoint, load_checkpoint
from toolkit.runs.folder import RUNS, find_checkpoint

SHIPPED = "shipped"  # "./shipped" names a file or a run


def load_initial(name: str, *, root: Path = RUNS) -> Checkpoint:
    """Load the checkpoint that a run starts from.

    Args:
        name: a checkpoint file, a run by name or path, or "shipped" for the model in the package.
        root: the folder of runs.

    Raises:
        ToolkitError: no such file or run, or not a checkpoint.
    """
    return load_checkpoint(SHIPPED_CHECKPOINT if name == SHIPPED else find_checkpoint(name, root=root))


def require_unseen_validation(
    checkpoint: Checkpoint, recipe: Recipe, identity: dict[str, str], *, what: str = "the initial weights"
) -> None:
    """Check that weights that a run uses were not trained on images that it validates on.

    The split depends only on the training images and `val_size`: two runs with equal values hold out the same images.

    Args:
        checkpoint: holds the weights.
        recipe: of the run, which holds validation images out of its training images.
        identity: of the training images.
        what: the weights, for the message.

    Raises:
        ToolkitError: the same data with another `val_size`.
    """
    held_out = recipe.run.val_size
    if held_out == 0 or checkpoint.data != identity:
        return
    before = Recipe.from_dict(checkpoint.recipe, where=f"the recipe of {what}").run.val_size
    if before != held_out:
        raise ToolkitError(
            f"{what} were trained on these data with a val_size of {before:g}, and this run holds out "
            f"{held_out:g}: they may have seen its validation images. Use --val-size {before:g}"
        )


@dataclass(frozen=True)
class InitializedLayers:
    """The layers with weights of a network, by the source of their weights.

    Attributes:
        loaded: names of the layers with weights from the checkpoint.
        new: names of the layers with random weights.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]

    def describe(self, init: Checkpoint) -> str:
        """One line for the user."""
        count = len(self.loaded) + len(self.new)
        trained_on = escape(init.data.get("name", "?"))
        text = f"Initial weights of {len(self.loaded)} of {count} layers from a {init.model} trained on {trained_on}"
        if self.new:
            text += f"; new: {', '.join(self.new[:3])}"
        return f"{text} and {len(self.new) - 3} more" if len(self.new) > 3 else text


def load_fitting_layers(network: nn.Module, init: Checkpoint, class_names: tuple[str, ...]) -> InitializedLayers:
    """Load the layers of `init` that have the same name and shapes; the last one only if the classes are the same.

    Args:
        network: changed in place; its other layers keep their weights.
        init: the trained checkpoint.
        class_names: of the new run.

    Raises:
        ToolkitError: no layer fits.
    """
    given = init.network().state_dict()
    loaded, new = [], []
    for name, layer in network.named_modules():
        weights: dict[str, Any] = layer.state_dict()
        if not weights or list(layer.children()):
            continue
        found = {key: given.get(f"{name}.{key}") for key in weights}
        fits = all(value is not None and value.shape == weights[key].shape for key, value in found.items())
        if fits and (name != "linear" or init.class_names == class_names):
            layer.load_state_dict(found)
            loaded.append(name)
        else:
            new.append(name)
    if not loaded:
        raise ToolkitError(f"no layer of the {init.model} in the initial checkpoint fits: choose the same --model")
    return InitializedLayers(tuple(loaded), tuple(new))
