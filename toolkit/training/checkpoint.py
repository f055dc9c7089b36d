"""Checkpoints: a network's weights and all that is needed to rebuild it, as tensors and plain values only."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import MODELS, ResNet, build_model
from toolkit.errors import ToolkitError
from toolkit.files import replacing

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What one `.pt` file holds.

    Attributes:
        model: the network's name in `models.MODELS`.
        model_args: the keyword arguments of `models.build_model`.
        class_names: one name per output, in order.
        recipe: the resolved recipe, as nested plain values (`Recipe.as_dict`).
        data: identity of the training data: "name" and "train_sha256".
        epoch: how many epochs the weights have seen.
        val_accuracy: in [0, 1]; None where no validation images were held out.
        weights: the network's state dict, on the CPU; the averages, if the recipe averages.
        training: optimiser state and the loop's own values; None in a checkpoint that is not meant to be continued.
            If the recipe averages, also the weights behind the averages, and how many steps were averaged.
        teacher: identity of the network that taught this one (`distillation.teacher_identity`); None without one.
    """

    model: str
    model_args: dict[str, Any]
    class_names: tuple[str, ...]
    recipe: dict[str, Any]
    data: dict[str, str]
    epoch: int
    val_accuracy: float | None
    weights: dict[str, Tensor]
    training: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None

    def network(self) -> ResNet:
        """The network with these weights, on the CPU, in evaluation mode.

        Raises:
            ToolkitError: the weights do not fit the network that the checkpoint names.
        """
        if self.model not in MODELS:
            raise ToolkitError(f"the checkpoint names the model {self.model!r}; known are {', '.join(MODELS)}")
        try:
            network = build_model(self.model, **self.model_args)
            network.load_state_dict(self.weights)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ToolkitError(
                f"the checkpoint does not fit the model {self.model!r} that it names: {error}"
            ) from error
        return network.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `checkpoint` to `path`, whole or not at all.

    Raises:
        ToolkitError: the file cannot be written.
    """
    values = {field: getattr(checkpoint, field) for field in checkpoint.__dataclass_fields__}
    values |= {"format": FORMAT, "class_names": list(checkpoint.class_names)}
    if checkpoint.teacher is None:
        del values["teacher"]  # as files were before there were teachers
    with replacing(path) as temporary, temporary.open("wb") as file:  # given a path, torch would store its name
        torch.save(values, file)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed (`weights_only=True`).

    Raises:
        ToolkitError: there is no such file, or it is not a checkpoint of this toolkit.
    """
    if not path.is_file():
        raise ToolkitError(f"no checkpoint at {path}")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ToolkitError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ToolkitError(f"{path} is not a checkpoint of this toolkit (format {FORMAT})")
    try:
        return Checkpoint(**(values | {"class_names": tuple(values["class_names"])}))
    except (TypeError, KeyError) as error:
        raise ToolkitError(f"{path} is not a complete checkpoint: {error}") from error
