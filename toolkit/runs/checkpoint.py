"""Checkpoints: weights and everything needed to rebuild the network, as tensors and plain values only."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from models import MODELS, ResNet, build_model
except ImportError as error:
    raise ImportError(
        f"{error.path} is another package named `models`, which Python found before this toolkit's: run from another "
        "folder, or put the toolkit's folder first on sys.path",
        name="models",
        path=error.path,
    ) from error
from toolkit.data.channels import CIFAR10_STATISTICS, ChannelStatistics
from toolkit.data.listing import MAX_CLASSES, MAX_NAME_LENGTH
from toolkit.errors import ToolkitError
from toolkit.files import escape, quote, replacing
from toolkit.runs.torch_file import are_plain, read_torch_file

FORMAT = 1

SHIPPED_CHECKPOINT = Path(__file__).parents[1] / "weights" / "checkpoint.pt"

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
    "init": dict | None,
    "teacher": dict | None,
    "channels": dict,
}
# Values of keys that are left out when they hold the default, as in files from before these keys existed.
_DEFAULTS: dict[str, Any] = {
    "init": None,
    "teacher": None,
    "channels": {"mean": list(CIFAR10_STATISTICS.mean), "std": list(CIFAR10_STATISTICS.std)},
}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one `.pt` file.

    Attributes:
        model: the network's name in `models.MODELS`.
        model_args: the keyword arguments of `models.build_model`.
        class_names: one name per output, in order.
        recipe: the resolved recipe, as nested plain values (`Recipe.as_dict`).
        data: identity of the training data: "name" and "train_sha256".
        epoch: number of completed epochs.
        val_accuracy: in [0, 1]; None without validation images.
        weights: the network's state dict, on the CPU.
        training: state from which training resumes (optimizer, seconds, precision); None in a checkpoint that cannot
            be resumed.
        init: identity of the checkpoint that the run started from (`identify_checkpoint`); None for random weights.
        teacher: identity of the network that the run distills from; None without distillation.
        statistics: by which the network's images are normalized.
        sha256: of the file that was loaded; None for a checkpoint in memory.
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
    init: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None
    statistics: ChannelStatistics = CIFAR10_STATISTICS
    sha256: str | None = None

    def network(self) -> ResNet:
        """Build the network with these weights, on the CPU, in evaluation mode.

        Raises:
            ToolkitError: the weights do not fit the named network.
        """
        if self.model not in MODELS:
            raise ToolkitError(f"the checkpoint names the model {quote(self.model)}; known are {', '.join(MODELS)}")
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
    """Write `checkpoint` to `path` atomically.

    Raises:
        ToolkitError: the file cannot be written.
    """
    values = {field: getattr(checkpoint, field) for field in _KINDS if field != "channels"}
    statistics = checkpoint.statistics
    values["channels"] = {"mean": list(statistics.mean), "std": list(statistics.std)}
    values |= {"format": FORMAT, "class_names": list(checkpoint.class_names)}
    values["weights"] = dict(checkpoint.weights)  # a state dict carries attributes
    values = {field: value for field, value in values.items() if field not in _DEFAULTS or value != _DEFAULTS[field]}
    content = io.BytesIO()  # on a full disk, torch's own error does not name the cause
    torch.save(values, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Nothing in the file is executed; types and sizes are checked before anything is built.

    Raises:
        ToolkitError: no such file, or not a checkpoint of this toolkit.
    """
    if not os.path.lexists(path):
        raise ToolkitError(f"no checkpoint at {escape(path)}")
    values, sha256 = read_torch_file(path)
    form = values.pop("format", None) if isinstance(values, dict) else None
    if not isinstance(form, int) or form != FORMAT:
        raise ToolkitError(f"{escape(path)} is not a checkpoint of this toolkit (format {FORMAT})")
    values = _DEFAULTS | values
    if fault := _find_fault(values):
        raise ToolkitError(f"{escape(path)} is not a complete checkpoint: {fault}")
    channels = values.pop("channels")
    statistics = ChannelStatistics(tuple(channels["mean"]), tuple(channels["std"]))
    names = tuple(values["class_names"])
    return Checkpoint(**(values | {"class_names": names, "statistics": statistics, "sha256": sha256}))


def _find_fault(values: dict[str, Any]) -> str | None:
    """Describe the first value with a wrong type or size; None for a complete checkpoint."""
    if missing := sorted(_KINDS.keys() - values.keys()):
        return f"{', '.join(missing)} missing"
    if unknown := [name for name in values if name not in _KINDS]:
        return f"unknown key {_describe(unknown[0])}"
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind):
            return f"{name} is {_describe(values[name])}"
    training = values["training"]
    if not are_plain([values[name] for name in _KINDS if name != "training"], keys=str):
        return "it holds values other than tensors, printable text and numbers, or too many"
    if not are_plain([training], keys=str | int):  # optimizers number their parameters
        return "the optimizer state holds values other than tensors, printable text and numbers, or too many"
    names, arguments = values["class_names"], values["model_args"]
    if not all(isinstance(name, str) and name.isprintable() for name in names) or len(set(names)) < len(names):
        return f"its class names are {quote(names)}"
    if not all(isinstance(value, int | float) for value in arguments.values()):
        return f"the arguments of its model are {quote(arguments)}"
    if any(len(name) > MAX_NAME_LENGTH for name in names):
        return f"a class name has more than {MAX_NAME_LENGTH} characters"
    if arguments.get("num_classes", 10) != len(names) or len(names) > MAX_CLASSES:
        return f"{len(names)} class names for {quote(arguments.get('num_classes', 10))} classes"
    if not _are_statistics(values["channels"]):
        return f"the mean and standard deviation of its channels are {quote(values['channels'])}"
    if not all(isinstance(value, str) for value in values["data"].values()):
        return f"the identity of its data is {quote(values['data'])}"
    if not all(isinstance(value, Tensor) for value in values["weights"].values()):
        return "its weights are not all tensors"
    if values["epoch"] < 0 or not 0 <= (values["val_accuracy"] or 0.0) <= 1:
        return f"epoch {values['epoch']} with an accuracy of {values['val_accuracy']}"
    return None


def _are_statistics(channels: dict[str, Any]) -> bool:
    """Whether these are three means and three standard deviations above 0."""
    if channels.keys() != {"mean", "std"} or not all(isinstance(values, list) for values in channels.values()):
        return False
    numbers = [*channels["mean"], *channels["std"]]
    if len(channels["mean"]) != 3 or len(numbers) != 6 or not all(type(number) is float for number in numbers):
        return False
    return all(0 <= number <= 1 for number in numbers) and min(channels["std"]) > 0


def _describe(value: Any) -> str:
    """Format a plain value, and of any other only its type: nested values may be very long."""
    return quote(value) if isinstance(value, str | int | float | None) else f"of the type {type(value).__name__}"


def identify_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The record of initial weights, or of a teacher, in a run: "model", "recipe" and "weights_sha256"."""
    return {"model": checkpoint.model, "recipe": checkpoint.recipe, "weights_sha256": _sha256(checkpoint.weights)}


def _sha256(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, in the order of the names: independent of the file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}\n".encode())
        digest.update(weights[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
