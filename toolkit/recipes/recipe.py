"""The recipe: every choice of a training run, frozen, read from a preset, a TOML or JSON file, and flags."""

import dataclasses
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import MODELS
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import open_regular

PRESETS = Path(__file__).parent / "presets"
SCHEDULES = ("cosine_annealing", "step_decay", "linear")

# Ten times the longest recipe with its comments. The TOML reader's time grows with the square of a dotted key's length:
# a file of this size takes it two seconds at most.
MAX_BYTES = 16 * 2**10

LARGEST = 1_000_000  # of what is counted: epochs, images a step, images held out


def _key(default: Any, help: str, *, low: float | None = None, high: float = math.inf, choices: Any = ()) -> Any:
    """One key of the recipe: its default, its one-line description and the values that it may have."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)})


@dataclass(frozen=True)
class DataAugmentation:
    """What is done to the training images, anew each time one is seen."""

    random_crop: bool = _key(True, "cut a random 32x32 window out of the padded image")
    crop_padding: int = _key(4, "black pixels added on each side before the crop", low=0, high=16)
    horizontal_flip: bool = _key(True, "mirror every image with probability one half")
    mixup_alpha: float = _key(0.2, "mixup's Beta(alpha, alpha) distribution; 0: no mixup", low=0)
    random_erasing: float = _key(0.0, "probability that a random rectangle of an image is erased", low=0, high=1)
    small_crop_size: int = _key(24, "side of the smaller crops that the first epochs may train on", low=8, high=32)
    small_crop_share: float = _key(0.0, "share of the epochs that train on the smaller crops", low=0, high=1)


@dataclass(frozen=True)
class Run:
    """What may differ between two runs of one recipe."""

    model: str = _key("resnet20", "the network", choices=MODELS)
    seed: int = _key(0, "seed of the initial weights, the order and the augmentation", low=0, high=2**31 - 1)
    val_size: int = _key(5000, "training images held out for validation; 0: train on all", low=0, high=LARGEST)
    precision: str = _key("auto", "number format of the forward pass", choices=("auto", "float32", "bfloat16"))


@dataclass(frozen=True)
class Recipe:
    """All hyperparameters of a run. The defaults are those of the preset `reference`."""

    optimizer: str = _key("SGD", "the optimizer", choices=("SGD", "Adam", "Muon"))
    momentum: float = _key(0.9, "momentum of SGD and Muon; Adam's beta1", low=0, high=0.9999)
    nesterov: bool = _key(False, "SGD only: Nesterov's form of the momentum")
    learning_rate: float = _key(0.05, "the highest learning rate of the run", low=0)
    sgd_learning_rate: float = _key(
        0.1, "Muon only: the highest learning rate of all but the convolutions, which SGD trains", low=0
    )
    lr_schedule: str = _key("cosine_annealing", "how the learning rate falls", choices=SCHEDULES)
    lr_milestones: tuple[int, ...] = _key((), "step_decay: the epochs after which the rate is multiplied by lr_gamma")
    lr_gamma: float = _key(0.1, "step_decay: the factor at each milestone", low=0, high=1)
    warmup_epochs: float = _key(0.0, "epochs over which the learning rate first rises from 0", low=0)
    weight_decay: float = _key(5e-4, "L2 penalty on convolution and linear weights", low=0)
    dropout_rate: float = _key(0.3, "dropout before the linear layer", low=0, high=0.9999)
    label_smoothing: float = _key(0.0, "share of each label that is spread evenly over the classes", low=0, high=0.9999)
    distillation_weight: float = _key(0.0, "share of the teacher in the loss; 0: no teacher", low=0, high=1)
    distillation_temperature: float = _key(4.0, "softens the teacher's and the student's answers", low=1, high=100)
    ema_decay: float = _key(0.0, "decay of a moving average of the weights; 0: no averaging", low=0, high=0.99999)
    batch_size: int = _key(32, "images a step", low=1, high=LARGEST)
    epochs: int = _key(150, "passes over the training images", low=1, high=LARGEST)
    early_stopping: int | bool = _key(
        False, "false, or how many epochs without a better validation accuracy end the run"
    )
    data_augmentation: DataAugmentation = field(default_factory=DataAugmentation)
    run: Run = field(default_factory=Run)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as a recipe file holds them; `Recipe.from_dict` reads them back."""
        values = dataclasses.asdict(self)
        return values | {"lr_milestones": list(self.lr_milestones)}

    @staticmethod
    def from_dict(values: Mapping[str, Any], *, where: str = "recipe") -> "Recipe":
        """A recipe with `values` in the place of the defaults.

        Raises:
            UsageError: an unknown key, a wrong type or an impossible value; the message names key and valid values.
        """
        return Recipe().replaced(values, where=where)

    def replaced(self, values: Mapping[str, Any], *, where: str = "flags") -> "Recipe":
        """This recipe with some keys replaced: nested as in a file. Raises `UsageError` as `from_dict` does."""
        if values.get("lr_schedule", "step_decay") != "step_decay" and "lr_milestones" not in values:
            values = {**values, "lr_milestones": []}  # those of the schedule that is left
        recipe: Recipe = _replaced(self, values, where=where, prefix="")
        _check_together(recipe, where)
        return recipe

    def as_toml(self) -> str:
        """The text of a recipe file that gives this recipe again."""
        values = self.as_dict()
        tables = {name: values.pop(name) for name in ("data_augmentation", "run")}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        for table, keys in tables.items():
            text += f"\n[{table}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items())
        return text


def preset_names() -> list[str]:
    """The presets that come with the toolkit."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """A preset by name, or a TOML or JSON file by its path.

    Raises:
        UsageError: neither a preset nor a file, or a file that is not a valid recipe.
        ToolkitError: it is no ordinary file of at most `MAX_BYTES`, or it cannot be read.
    """
    path = PRESETS / f"{name_or_path}.toml" if name_or_path in preset_names() else Path(name_or_path)
    if not os.path.lexists(path):
        raise UsageError(f"no recipe {name_or_path!r}: give a file, or one of the presets {', '.join(preset_names())}")
    try:
        with open_regular(path, max_bytes=MAX_BYTES) as file:
            text = file.read(MAX_BYTES).decode("utf-8-sig")  # Notepad begins a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ToolkitError(f"cannot read the recipe {path}: {error}") from error
    return Recipe.from_dict(parse_recipe(text, where=str(path)), where=str(path))


def parse_recipe(text: str, *, where: str) -> dict[str, Any]:
    """The keys of a recipe file. JSON if it begins with a brace, else TOML; `//` begins a comment line in JSON.

    `lr_schedule` may carry its length, as in `cosine_annealing_150ep`; it must be that of the file.
    """
    without_comments = re.sub(r"(?m)^[ \t]*//.*$", "", text)
    try:
        if without_comments.lstrip().startswith("{"):
            values = json.loads(without_comments, object_pairs_hook=_no_key_twice)
        else:
            values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both readers' errors are ValueErrors
        raise UsageError(f"{where} is neither valid TOML nor valid JSON: {_short(str(error))}") from error
    return dict(values)


@dataclass(frozen=True)
class Key:
    """One key of the recipe as a flag needs it; `table` is "" for the keys outside any table."""

    table: str
    name: str
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def recipe_keys() -> Iterator[Key]:
    """Every key of the recipe, tables included, in the order of a recipe file."""
    for table, cls in (("", Recipe), ("data_augmentation", DataAugmentation), ("run", Run)):
        for entry in dataclasses.fields(cls):
            if "help" in entry.metadata:
                yield Key(table, entry.name, entry.metadata["help"])


def recipe_from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `flags` (parameter name to value, None where it was not given) that are keys of the recipe, nested.

    The two keys whose value is no single word are given as text: `early_stopping` as "false" or a number of epochs,
    `lr_milestones` as numbers with commas between.

    Raises:
        UsageError: such a text cannot be read.
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
            raise UsageError(f"{key.flag} takes {form}, not {_shown(value)}") from error
        (nested.setdefault(key.table, {}) if key.table else nested)[key.name] = value
    return nested


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return values


def _replaced(target: Any, values: Mapping[str, Any], *, where: str, prefix: str) -> Any:
    """The dataclass `target` with `values` checked and put in, tables within tables likewise."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: {prefix.rstrip('.')} must be a table of keys, not {_shown(values)}")
    fields = {entry.name: entry for entry in dataclasses.fields(target)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            key = _shown(f"{prefix}{name}")
            raise UsageError(f"{where}: unknown key {key}{_did_you_mean(name, fields)}; {_list(fields)}")
        current = getattr(target, name)
        if dataclasses.is_dataclass(current):
            changes[name] = _replaced(current, value, where=where, prefix=f"{name}.")
        else:
            if name == "lr_schedule":
                value = _without_length(value, values.get("epochs", getattr(target, "epochs", None)), where)
            changes[name] = _checked(value, fields[name], f"{where}: {prefix}{name}")
    return dataclasses.replace(target, **changes)


def _did_you_mean(name: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, fields, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _list(fields: Mapping[str, Any]) -> str:
    return f"the keys are {', '.join(fields)}"


def _without_length(schedule: Any, epochs: Any, where: str) -> Any:
    """`cosine_annealing_150ep` as `cosine_annealing`: the length is the recipe's `epochs`, and must agree with it."""
    match = re.fullmatch(r"(\w+?)_(\d{1,9})ep", schedule) if isinstance(schedule, str) else None
    if match is None:
        return schedule
    if int(match[2]) != epochs:
        raise UsageError(f"{where}: lr_schedule is {schedule!r}, but epochs is {_shown(epochs)}: make them agree")
    return match[1]


def _checked(value: Any, entry: "dataclasses.Field[Any]", what: str) -> Any:
    """`value` in the type of its key.

    Raises:
        UsageError: wrong type, not finite, outside the range, or not among the choices.
    """
    rule = entry.metadata
    if entry.name == "early_stopping":
        if value is False or (type(value) is int and 1 <= value <= LARGEST):
            return value
        raise UsageError(f"{what} must be false or a whole number of epochs from 1, not {_shown(value)}")
    if entry.name == "lr_milestones":
        if isinstance(value, list | tuple) and all(type(n) is int and 1 <= n <= LARGEST for n in value):
            return tuple(value)
        raise UsageError(
            f"{what} must be a list of whole numbers of epochs from 1, such as [75, 113], not {_shown(value)}"
        )
    if entry.type is float and type(value) is int and abs(value) < 2**63:  # beyond, it may be no float at all
        value = float(value)
    if type(value) is not entry.type:
        raise UsageError(f"{what} must be {_NAMES[entry.type]}, not {_shown(value)}")
    if rule["choices"] and value not in rule["choices"]:
        raise UsageError(f"{what} must be one of {', '.join(rule['choices'])}, not {_shown(value)}")
    if rule["low"] is not None and not (rule["low"] <= value <= rule["high"] and math.isfinite(value)):
        bounds = f"from {rule['low']}" + (f" to {rule['high']}" if math.isfinite(rule["high"]) else "")
        raise UsageError(f"{what} must be {_NAMES[entry.type]} {bounds}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value out of a recipe as a message can hold it."""
    try:
        return _short(repr(value))
    except (ValueError, RecursionError):  # a number of thousands of digits; tables within tables within tables
        return "what is too long to be shown"


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _check_together(recipe: Recipe, where: str) -> None:
    """Refuse keys that are possible each by itself, but not together."""
    if recipe.lr_schedule == "step_decay" and not recipe.lr_milestones:
        raise UsageError(f"{where}: lr_schedule step_decay needs lr_milestones, such as [75, 113]")
    if recipe.lr_milestones and recipe.lr_schedule != "step_decay":
        raise UsageError(f"{where}: lr_milestones goes with lr_schedule step_decay, not {recipe.lr_schedule}")
    if recipe.lr_milestones and max(recipe.lr_milestones) >= recipe.epochs:
        milestones = _shown(recipe.lr_milestones)
        raise UsageError(f"{where}: lr_milestones {milestones} must lie before the end, {recipe.epochs}")
    if recipe.warmup_epochs >= recipe.epochs:
        raise UsageError(f"{where}: warmup_epochs {recipe.warmup_epochs:g} must be less than epochs {recipe.epochs}")
    if recipe.early_stopping and recipe.run.val_size == 0:
        raise UsageError(f"{where}: early_stopping watches the validation accuracy, so run.val_size cannot be 0")
    if recipe.nesterov and (recipe.optimizer != "SGD" or recipe.momentum == 0):
        raise UsageError(f"{where}: nesterov needs optimizer SGD with a momentum above 0")
