"""Fuzzed recipes, checkpoints and models: made from whole ones by changes that keep their form, so they get far.

Pictures are fuzzed in tests/inference/test_image.py. What was found stands as a case of its own in
tests/support/hostile.py and in tests/hostile/test_files.py. `FUZZ_EXAMPLES=100000 pytest -m hostile
tests/hostile/test_fuzz.py` looks for more.
"""

import copy
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from tests.support.hostile import archive, behind_a_group, fuzzing, little_memory, values_of_a_checkpoint, with_records
from tests.support.onnx_models import tiny_model
from tests.support.sources import colored_source
from toolkit.deploy import verify
from toolkit.errors import ToolkitError
from toolkit.inference import open_model
from toolkit.inference.model_operators import OPERATORS
from toolkit.recipes.recipe import PRESETS, load_recipe, preset_names, recipe_keys
from toolkit.runs.checkpoint import load_checkpoint

pytestmark = [pytest.mark.hostile, pytest.mark.slow]

NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**63), 10**400, 1e308, 1e-308, -0.0, True, False, 0.5])
WORDS = st.sampled_from(["", "SGD", "Adam", "linear", "step_decay", "cosine_annealing_3ep", "\x1b[2J", "\ud800", "é\n"])
PLAIN = st.one_of(st.none(), NUMBERS, WORDS, st.integers(), st.floats(), st.text(max_size=20))
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    with little_memory(room=3 * 2**30):  # a model of ONNX Runtime has threads, and each its stack
        yield


def readable(error: ToolkitError) -> None:
    assert len(str(error)) < 2000


def edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """`content` with some of it cut out, doubled or overwritten: each edit is a place, a length and new bytes."""
    for place, length, new in edits:
        start = place % (len(content) + 1)
        content = content[:start] + new + content[start + length :]
    return content


EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 12), st.binary(max_size=8)), min_size=1, max_size=6)

# Recipes

KEYS = st.sampled_from([key.name for key in recipe_keys()] + ["data_augmentation", "run", "learning_rte", ""])
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)


def recipe_or_error(path: Path) -> None:
    try:
        recipe = load_recipe(str(path))
    except ToolkitError as error:
        readable(error)
        return
    path.write_text(recipe.as_toml())
    assert load_recipe(str(path)) == recipe


@fuzzing
@given(values=TABLES, augmentation=VALUES | TABLES, run=VALUES | TABLES)
def test_recipes_of_odd_values(tmp_path: Path, values: dict[str, Any], augmentation: Any, run: Any) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(values | {"data_augmentation": augmentation, "run": run}))
    recipe_or_error(path)


PRESET_TEXTS = [(PRESETS / f"{name}.toml").read_bytes() for name in preset_names()]


@fuzzing
@given(text=st.sampled_from(PRESET_TEXTS), edits=EDITS)
def test_recipes_with_edits(tmp_path: Path, text: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(edited(text, edits))
    recipe_or_error(path)


@fuzzing
@given(key=KEYS, literal=st.from_regex(r"[-+0-9a-fxobe_.T:\[\]{},=\"' ]{1,20}", fullmatch=True))
def test_recipes_with_odd_toml_values(tmp_path: Path, key: str, literal: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"{key} = {literal}\n")
    recipe_or_error(path)


# Checkpoints

PLACES = st.sampled_from(
    [("model",), ("model_args",), ("model_args", "num_classes"), ("model_args", "dropout_rate"), ("class_names",),
     ("class_names", 0), ("recipe",), ("recipe", "run"), ("data",), ("data", "name"), ("data", "train_sha256"),
     ("epoch",), ("val_accuracy",), ("weights",), ("weights", "conv.weight"), ("training",), ("format",), ("more",)]
)  # fmt: skip
TENSORS = st.sampled_from(
    [torch.zeros(0), torch.zeros(1).expand(2**40), torch.full((16, 3, 3, 3), float("nan")), torch.zeros(10, dtype=int)]
)


def checkpoint_or_error(path: Path) -> None:
    try:
        network = load_checkpoint(path).network()
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    except ToolkitError as error:
        readable(error)


@fuzzing
@given(changes=st.lists(st.tuples(PLACES, VALUES | TENSORS), min_size=1, max_size=3))
def test_checkpoints_of_odd_values(tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    values: Any = copy.deepcopy(WHOLE)
    for place, value in changes:
        part = values
        try:
            for name in place[:-1]:
                part = part[name]
            if not isinstance(part, torch.Tensor):  # another change put it there; torch deprecates odd indices of one
                part[place[-1]] = value
        except (TypeError, IndexError, KeyError, RuntimeError):  # another change was there before
            continue
    path = tmp_path / "best.pt"
    path.write_bytes(archive(values))
    checkpoint_or_error(path)


WHOLE = values_of_a_checkpoint()
CHECKPOINT = archive(WHOLE)
with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as _archive:
    PICKLE = _archive.read("archive/data.pkl")


@fuzzing
@given(edits=EDITS)
def test_checkpoints_with_an_edited_pickle(tmp_path: Path, edits: list[tuple[int, int, bytes]]) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(with_records({"data.pkl": edited(PICKLE, edits)}, base=CHECKPOINT))
    checkpoint_or_error(path)


@fuzzing
@given(edits=EDITS, from_end=st.booleans())
def test_checkpoints_with_an_edited_archive(
    tmp_path: Path, edits: list[tuple[int, int, bytes]], from_end: bool
) -> None:
    """What an archive holds is listed at its end."""
    path = tmp_path / "best.pt"
    content = CHECKPOINT
    path.write_bytes(content[:-4096] + edited(content[-4096:], edits) if from_end else edited(content, edits))
    checkpoint_or_error(path)


# Models


def same(model: onnx.ModelProto, pick: int, number: int) -> None:
    pass


def another_operator(model: onnx.ModelProto, pick: int, number: int) -> None:
    if model.graph.node:
        model.graph.node[pick % len(model.graph.node)].op_type = sorted(OPERATORS)[number % len(OPERATORS)]


def another_input(model: onnx.ModelProto, pick: int, number: int) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)] + ["", "images"]
    if model.graph.node:
        node = model.graph.node[pick % len(model.graph.node)]
        node.input[:] = [names[(number + place) % len(names)] for place in range(len(node.input))]


def another_attribute(model: onnx.ModelProto, pick: int, number: int) -> None:
    if model.graph.node:
        node = model.graph.node[pick % len(model.graph.node)]
        name = ["axis", "to", "keepdims", "axes", "value", "pads", "kernel_shape"][number % 7]
        node.attribute.add(name=name, type=2 + 5 * (number % 2), i=number, ints=[number] * (pick % 5))


def another_shape(model: onnx.ModelProto, pick: int, number: int) -> None:
    if model.graph.initializer:
        model.graph.initializer[pick % len(model.graph.initializer)].dims.append(number)


def another_type(model: onnx.ModelProto, pick: int, number: int) -> None:
    if model.graph.initializer:
        model.graph.initializer[pick % len(model.graph.initializer)].data_type = number % 26


def another_interface(model: onnx.ModelProto, pick: int, number: int) -> None:
    for value in [*model.graph.input, *model.graph.output][pick % 4 :]:
        dim = value.type.tensor_type.shape.dim
        if number % 2 and dim:
            dim[pick % len(dim)].dim_value = number
        else:
            dim.add(dim_value=number)


def without_a_node(model: onnx.ModelProto, pick: int, number: int) -> None:
    if model.graph.node:
        del model.graph.node[pick % len(model.graph.node)]


def a_node_twice(model: onnx.ModelProto, pick: int, number: int) -> None:
    if model.graph.node:
        model.graph.node.add().CopyFrom(model.graph.node[pick % len(model.graph.node)])


def another_version(model: onnx.ModelProto, pick: int, number: int) -> None:
    model.opset_import[0].version = number
    model.ir_version = pick


def another_property(model: onnx.ModelProto, pick: int, number: int) -> None:
    texts = ["", "[]", "[" * 10_000, '{"name": 5}', "\x1b", "é", "9" * 5000, "NaN"]
    if model.metadata_props:
        model.metadata_props[pick % len(model.metadata_props)].value = texts[number % len(texts)]


def another_tensor(model: onnx.ModelProto, pick: int, number: int) -> None:
    tensor = TensorProto(name=f"t{number}", data_type=1 + pick % 25, dims=[pick, number], raw_data=b"\0" * (pick % 64))
    model.graph.initializer.append(tensor)


CHANGES = [
    same, another_operator, another_input, another_attribute, another_shape, another_type, another_interface,
    without_a_node, a_node_twice, another_version, another_property, another_tensor,
]  # fmt: skip
SIZES = st.sampled_from([0, 1, 2, 3, 7, 10, 32, 100, 2**31 - 1, 2**31, 2**62, -1, -2, -(2**31)])
SOURCE = colored_source(train=20, test=20)
PIXELS = np.zeros((2, 32, 32, 3), np.uint8)


def model_or_error(path: Path) -> None:
    for read in (
        lambda: open_model(path, provider="cpu", threads=1).logits_and_probabilities(PIXELS),
        lambda: verify(path, data=SOURCE),
    ):
        try:
            read()
        except ToolkitError as error:
            readable(error)


@fuzzing
@given(changes=st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 60), SIZES), min_size=1, max_size=4))
def test_models_with_odd_parts(tmp_path: Path, changes: list[tuple[Any, int, int]]) -> None:
    model = tiny_model()
    for change, pick, number in changes:
        try:
            change(model, pick, number)
        except ValueError:  # a number that this field cannot hold
            continue
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    model_or_error(path)


MODEL = tiny_model().SerializeToString()


@fuzzing
@given(edits=EDITS, grouped=st.booleans())
def test_models_with_edits(tmp_path: Path, edits: list[tuple[int, int, bytes]], grouped: bool) -> None:
    content = edited(MODEL, edits)
    path = tmp_path / "model.onnx"
    path.write_bytes(behind_a_group(content) if grouped else content)
    model_or_error(path)
