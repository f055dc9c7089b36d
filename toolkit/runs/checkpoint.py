"""Checkpoints: a network's weights and all that is needed to rebuild it, as tensors and plain values only."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import MODELS, ResNet, build_model
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.runs.archive import are_plain, read_archive

FORMAT = 1

MAX_CLASSES = 1000

_KINDS: dict[str, Any] = {
    "model": str,
    "model_args": dict,
    "class_names": list,
    "recipe": dict,
    "data": dict,
    "epoch": int,
    "val_accuracy": float | None,
    "weights": dict,
    "training": dict | None,
    "teacher": dict | None,
}


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
            raise ToolkitError(f"the checkpoint names the model {_short(self.model)}; known are {', '.join(MODELS)}")
        try:
            network = build_model(self.model, **self.model_args)
            network.load_state_dict(self.weights)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ToolkitError(
                f"the checkpoint does not fit the model {self.model!r} that it names: {reason}"
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
    content = io.BytesIO()  # on a full disk, torch raises an error that names none
    torch.save(values, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed, and what it asks for is checked before it is built.

    Raises:
        ToolkitError: there is no such file, or it is not a checkpoint of this toolkit.
    """
    if not os.path.lexists(path):
        raise ToolkitError(f"no checkpoint at {path}")
    values = read_archive(path)
    form = values.pop("format", None) if isinstance(values, dict) else None
    if not isinstance(form, int) or form != FORMAT:
        raise ToolkitError(f"{path} is not a checkpoint of this toolkit (format {FORMAT})")
    values.setdefault("teacher", None)
    if fault := _fault(values):
        raise ToolkitError(f"{path} is not a complete checkpoint: {fault}")
    return Checkpoint(**(values | {"class_names": tuple(values["class_names"])}))


def _fault(values: dict[str, Any]) -> str | None:
    """What is wrong with the values of a checkpoint; None where each has its type and nothing in them can grow."""
    if missing := sorted(_KINDS.keys() - values.keys()):
        return f"without {', '.join(missing)}"
    if unknown := [name for name in values if name not in _KINDS]:
        return f"with the key {_kind(unknown[0])}, which is unknown"
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind):
            return f"{name} is {_kind(values[name])}"
    training = values["training"]
    if not are_plain([values[name] for name in _KINDS if name != "training"], keys=str):
        return "it holds other than tensors and plain values, or too many"
    if not are_plain([training], keys=str | int):  # an optimiser counts its parameters
        return "the optimiser's state holds other than tensors and plain values, or too many"
    names, arguments = values["class_names"], values["model_args"]
    if not all(isinstance(name, str) and name.isprintable() for name in names) or len(set(names)) < len(names):
        return f"its class names are {_short(names)}"
    if not all(isinstance(value, int | float) for value in arguments.values()):
        return f"the arguments of its model are {_short(arguments)}"
    if arguments.get("num_classes", 10) != len(names) or len(names) > MAX_CLASSES:
        return f"{len(names)} class names for {_short(arguments.get('num_classes', 10))} classes"
    if not all(isinstance(value, str) for value in values["data"].values()):
        return f"the identity of its data is {_short(values['data'])}"
    if not all(isinstance(value, Tensor) for value in values["weights"].values()):
        return "its weights are not all tensors"
    if values["epoch"] < 0 or not 0 <= (values["val_accuracy"] or 0.0) <= 1:
        return f"epoch {values['epoch']} with an accuracy of {values['val_accuracy']}"
    return None


def _kind(value: Any) -> str:
    """A value that may be anything: only short ones are shown, since what is nested may be without end."""
    return _short(value) if isinstance(value, str | int | float | None) else f"of the type {type(value).__name__}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def teacher_identity(teacher: Checkpoint) -> dict[str, Any]:
    """What a run records of its teacher: "model", "recipe" and "weights_sha256"; nothing of where it lay."""
    return {"model": teacher.model, "recipe": teacher.recipe, "weights_sha256": _sha256(teacher.weights)}


def _sha256(weights: dict[str, Tensor]) -> str:
    """Over the names, shapes and values, in the order of the names: the same whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}\n".encode())
        digest.update(weights[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
