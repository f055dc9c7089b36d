"""The recipe: every choice of a training run, frozen, read from a preset, a TOML or JSON file, and flags."""

import dataclasses
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from toolkit.errors import ToolkitError, UsageError, first_line
from toolkit.files import open_regular, quote, shorten

PRESETS = Path(__file__).parent / "presets"
TABLES = ("data_augmentation", "run")

# Ten times the longest recipe with its comments. The TOML reader's time grows with the square of a dotted key's length:
# a file of this size takes it two seconds at most.
MAX_BYTES = 16 * 2**10

MAX_COUNT = 1_000_000  # largest number of epochs, images per step, validation images

# Far above any rate or penalty that trains, and far below what float32 holds.
MAX_RATE = 1_000_000
# Keys of earlier versions with their default values: a key with its default is ignored.
REMOVED_KEYS: dict[str, float] = {
    "ema_decay": 0.0,
    "random_erasing": 0.0,
}

MIN_ALPHA, MAX_ALPHA = 1e-3, 1000  # of mixup, where float32 can still draw from its distribution


def _key(default: Any, help: str, *, low: float | None = None, high: float = math.inf) -> Any:
    """One key of the recipe: its default, its one-line description and its range."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class DataAugmentation:
    """Random changes to the training images, drawn anew each time an image is used."""

    random_crop: bool = _key(True, "cut a random 32x32 window out of the padded image")
    crop_padding: int = _key(4, "black pixels added on each side before the crop", low=0, high=16)
    horizontal_flip: bool = _key(True, "mirror each image with probability one half")
    mixup_alpha: float = _key(0.2, "mixup's Beta(alpha, alpha) distribution; 0 for no mixup", low=0, high=MAX_ALPHA)
    small_crop_size: int = _key(24, "side of the smaller crops of the first epochs, pixels", low=8, high=32)
    small_crop_share: float = _key(0.0, "share of the epochs that train on the smaller crops", low=0, high=1)


@dataclass(frozen=True)
class RunSettings:
    """Settings that may differ between two runs of one recipe."""

    # The keys of models.MODELS, which cannot be imported without torch:
    model: Literal["resnet20", "resnet20-wide", "resnet32", "m6"] = _key("resnet20", "network, see `cifar models`")
    seed: int = _key(0, "seed of the initial weights, the order and the augmentation", low=0, high=2**31 - 1)
    val_size: float = _key(
        5000, "training images held out for validation; below 1: share of each class; 0: none", low=0, high=MAX_COUNT
    )
    precision: Literal["auto", "float32", "bfloat16"] = _key("auto", "number format of the forward pass")


@dataclass(frozen=True)
class Recipe:
    """All hyperparameters of a run. The defaults are those of the preset `reference`."""

    optimizer: Literal["SGD", "Adam", "Muon"] = _key("SGD", "optimizer")
    momentum: float = _key(0.9, "momentum of SGD and Muon; Adam's beta1", low=0, high=0.9999)
    nesterov: bool = _key(False, "SGD only: Nesterov momentum (Muon always uses it)")
    learning_rate: float = _key(0.05, "highest learning rate of the run", low=0, high=MAX_RATE)
    sgd_learning_rate: float = _key(
        0.1,
        "Muon only: highest learning rate of biases, BatchNorm and the linear layer, trained by SGD",
        low=0,
        high=MAX_RATE,
    )
    lr_schedule: Literal["cosine_annealing", "step_decay", "linear"] = _key(
        "cosine_annealing", "how the learning rate falls"
    )
    lr_milestones: tuple[int, ...] = _key((), "epochs after which step_decay multiplies the rate by lr_gamma")
    lr_gamma: float = _key(0.1, "factor of step_decay at each milestone", low=0, high=1)
    warmup_epochs: float = _key(0.0, "epochs over which the learning rate first rises from 0", low=0, high=MAX_COUNT)
    weight_decay: float = _key(
        5e-4, "L2 penalty on convolution and linear weights; Muon: on linear weights", low=0, high=MAX_RATE
    )
    dropout_rate: float = _key(0.3, "dropout before the linear layer", low=0, high=0.9999)
    label_smoothing: float = _key(0.0, "share of each label that is spread evenly over the classes", low=0, high=0.9999)
    distillation_weight: float = _key(0.0, "share of the teacher in the loss; 0 for no teacher", low=0, high=1)
    distillation_temperature: float = _key(4.0, "divides the logits of teacher and student", low=1, high=100)
    teacher_views: int = _key(
        16, "augmented views of each image that the teacher classifies, once each", low=1, high=MAX_COUNT
    )
    batch_size: int = _key(32, "images per step", low=1, high=MAX_COUNT)
    epochs: int = _key(150, "passes over the training images", low=1, high=MAX_COUNT)
    early_stopping: int | bool = _key(False, "epochs without a better validation accuracy that end the run, or false")
    data_augmentation: DataAugmentation = field(default_factory=DataAugmentation)
    run: RunSettings = field(default_factory=RunSettings)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in a recipe file; `Recipe.from_dict` reads them back."""
        values = dataclasses.asdict(self)
        return values | {"lr_milestones": list(self.lr_milestones)}

    @staticmethod
    def from_dict(values: Mapping[str, Any], *, where: str = "recipe") -> "Recipe":
        """Build a recipe from nested values; missing keys take the defaults.

        Raises:
            UsageError: an unknown key, a wrong type or an impossible value; the message names key and valid values.
        """
        return Recipe().replace(values, where=where)

    def replace(self, values: Mapping[str, Any], *, where: str = "flags") -> "Recipe":
        """Return this recipe with some keys replaced, nested as in a file. Raises `UsageError` as `from_dict` does."""
        if values.get("lr_schedule", "step_decay") != "step_decay" and "lr_milestones" not in values:
            values = {**values, "lr_milestones": []}  # they belong to the schedule that is replaced
        recipe: Recipe = _replace(self, values, where=where, prefix="")
        _check_combinations(recipe, where)
        return recipe

    def as_toml(self) -> str:
        """The text of a recipe file that gives this recipe."""
        values = self.as_dict()
        tables = {name: values.pop(name) for name in TABLES}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        for table, keys in tables.items():
            text += f"\n[{table}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items())
        return text


def preset_names() -> list[str]:
    """Names of the presets in the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Load a preset by name, or a TOML or JSON file by its path.

    Raises:
        UsageError: neither a preset nor a file, or a file that is not a valid recipe.
        ToolkitError: not a regular file of at most `MAX_BYTES`, or it cannot be read.
    """
    path = PRESETS / f"{name_or_path}.toml" if name_or_path in preset_names() else Path(name_or_path)
    if not os.path.lexists(path):
        suggestion = _suggest(name_or_path, preset_names())
        names = ", ".join(preset_names())
        raise UsageError(f"no recipe {quote(name_or_path)}{suggestion}: give a file, or one of the presets {names}")
    try:
        with open_regular(path, max_bytes=MAX_BYTES) as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig")  # some Windows editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ToolkitError(f"cannot read the recipe {path}: {error}") from error
    return Recipe.from_dict(parse_recipe(text, where=str(path)), where=str(path))


def parse_recipe(text: str, *, where: str) -> dict[str, Any]:
    """Parse a recipe file: JSON if it begins with a brace, else TOML; `//` begins a comment line in JSON.

    `lr_schedule` may carry its length, as in `cosine_annealing_150ep`; it must be that of the file.
    """
    without_comments = re.sub(r"(?m)^[ \t]*//.*$", "", text)
    try:
        if without_comments.lstrip().startswith("{"):
            values = json.loads(without_comments, object_pairs_hook=_reject_duplicate_keys)
        else:
            values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both readers' errors are ValueErrors
        raise UsageError(f"{where} is neither valid TOML nor valid JSON: {shorten(first_line(error))}") from error
    return dict(values)


@dataclass(frozen=True)
class Key:
    """One key of the recipe, as a flag or a table of keys needs it.

    Attributes:
        table: "" for the keys outside any table.
        type: the annotation of the dataclass field.
        default: the value in the preset `reference`.
    """

    table: str
    name: str
    help: str
    type: Any
    default: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def recipe_keys() -> Iterator[Key]:
    """Every key of the recipe, tables included, in the order of a recipe file."""
    for table, cls in (("", Recipe), ("data_augmentation", DataAugmentation), ("run", RunSettings)):
        for entry in dataclasses.fields(cls):
            if "help" in entry.metadata:
                yield Key(table, entry.name, entry.metadata["help"], entry.type, entry.default)


def recipe_from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the recipe keys in `flags` (name to value, None if not given), nested as in a recipe file.

    Two keys are text: `early_stopping` is "false" or a number of epochs, `lr_milestones` a comma-separated list.

    Raises:
        UsageError: one of these texts is invalid.
    """
    nested: dict[str, Any] = {}
    for key in recipe_keys():
        value = flags.get(key.name)
        if value is None:
            continue
        try:
            if key.name == "early_stopping":
                value = False if value == "false" else int(value)
            elif key.name == "lr_milestones":
                value = [int(epoch) for epoch in value.split(",")]
        except ValueError as error:
            form = "false or a whole number" if key.name == "early_stopping" else "whole numbers such as 75,113"
            raise UsageError(f"{key.flag} takes {form}, not {quote(value)}") from error
        (nested.setdefault(key.table, {}) if key.table else nested)[key.name] = value
    return nested


def scale_warmup(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `changes` with the recipe's warm-up scaled to their epochs, unless they set the warm-up."""
    epochs = changes.get("epochs")
    if recipe.warmup_epochs == 0 or not isinstance(epochs, int) or "warmup_epochs" in changes:
        return dict(changes)
    return {**changes, "warmup_epochs": recipe.warmup_epochs * epochs / recipe.epochs}


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a duplicate key")
    return values


def _replace(target: Any, values: Mapping[str, Any], *, where: str, prefix: str) -> Any:
    """Return the dataclass `target` with `values` checked and put in, nested tables included."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: {prefix.rstrip('.')} must be a table of keys, not {quote(values)}")
    fields = {entry.name: entry for entry in dataclasses.fields(target)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name in REMOVED_KEYS and value == REMOVED_KEYS[name]:
            continue
        if name not in fields:
            key = quote(f"{prefix}{name}")
            hint = " (removed from this version)" if name in REMOVED_KEYS else _suggest(name, fields)
            raise UsageError(f"{where}: unknown key {key}{hint}; the keys are {', '.join(fields)}")
        current = getattr(target, name)
        if dataclasses.is_dataclass(current):
            changes[name] = _replace(current, value, where=where, prefix=f"{name}.")
        else:
            if name == "lr_schedule":
                value = _remove_length(value, values.get("epochs", getattr(target, "epochs", None)), where)
            changes[name] = _check(value, fields[name], f"{where}: {prefix}{name}")
    return dataclasses.replace(target, **changes)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _remove_length(schedule: Any, epochs: Any, where: str) -> Any:
    """Turn `cosine_annealing_150ep` into `cosine_annealing`, if the recipe's `epochs` agree with it."""
    match = re.fullmatch(r"(\w+?)_(\d{1,9})ep", schedule) if isinstance(schedule, str) else None
    if match is None:
        return schedule
    if int(match[2]) != epochs:
        raise UsageError(f"{where}: lr_schedule is {schedule!r}, but epochs is {quote(epochs)}: make them agree")
    return match[1]


def _check(value: Any, entry: "dataclasses.Field[Any]", what: str) -> Any:
    """Return `value` in the type of its key.

    Raises:
        UsageError: wrong type, not finite, outside the range, or not among the choices.
    """
    shown = quote(value)
    if entry.name == "early_stopping":
        if value is False or (type(value) is int and 1 <= value <= MAX_COUNT):
            return value
        raise UsageError(f"{what} must be false or a whole number of epochs from 1, not {shown}")
    if entry.name == "lr_milestones":
        if isinstance(value, list | tuple) and all(type(n) is int and 1 <= n <= MAX_COUNT for n in value):
            return tuple(value)
        raise UsageError(f"{what} must be a list of whole numbers of epochs from 1, such as [75, 113], not {shown}")
    if choices := get_args(entry.type):
        if type(value) is not str:
            raise UsageError(f"{what} must be text, not {shown}")
        if value not in choices:
            raise UsageError(f"{what} must be one of {', '.join(choices)}, not {shown}")
        return value
    if entry.type is float and type(value) is int and abs(value) < 2**63:  # larger ones may not be floats at all
        value = float(value)
    if type(value) is not entry.type:
        raise UsageError(f"{what} must be {_TYPE_NAMES[entry.type]}, not {shown}")
    if entry.name == "val_size" and value >= 1:
        if value != int(value if math.isfinite(value) else 0):
            raise UsageError(f"{what} must be a whole number of images, or a share below 1, not {shown}")
        value = int(value)
    low, high = entry.metadata["low"], entry.metadata["high"]
    if low is not None and not (low <= value <= high and math.isfinite(value)):
        bounds = f"from {low}" + (f" to {high}" if math.isfinite(high) else "")
        raise UsageError(f"{what} must be {_TYPE_NAMES[entry.type]} {bounds}, not {quote(value)}")
    return value


_TYPE_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def _check_combinations(recipe: Recipe, where: str) -> None:
    """Raise `UsageError` for keys that contradict each other."""
    if recipe.lr_schedule == "step_decay" and not recipe.lr_milestones:
        raise UsageError(f"{where}: lr_schedule step_decay needs lr_milestones, such as [75, 113]")
    if recipe.lr_milestones and recipe.lr_schedule != "step_decay":
        raise UsageError(f"{where}: lr_milestones goes with lr_schedule step_decay, not {recipe.lr_schedule}")
    if recipe.lr_milestones and max(recipe.lr_milestones) >= recipe.epochs:
        milestones = quote(recipe.lr_milestones)
        raise UsageError(f"{where}: lr_milestones {milestones} must lie before the end, {recipe.epochs}")
    if recipe.warmup_epochs >= recipe.epochs:
        raise UsageError(f"{where}: warmup_epochs {recipe.warmup_epochs:g} must be less than epochs {recipe.epochs}")
    if recipe.early_stopping and recipe.run.val_size == 0:
        raise UsageError(f"{where}: early_stopping watches the validation accuracy, so run.val_size cannot be 0")
    if recipe.nesterov and (recipe.optimizer != "SGD" or recipe.momentum == 0):
        raise UsageError(f"{where}: nesterov needs optimizer SGD with a momentum above 0")
    if 0 < recipe.data_augmentation.mixup_alpha < MIN_ALPHA:
        raise UsageError(f"{where}: mixup_alpha must be 0, or a number from {MIN_ALPHA} to {MAX_ALPHA}")
    if recipe.optimizer == "Muon" and recipe.learning_rate == 0:
        raise UsageError(f"{where}: Muon needs a learning_rate above 0")
