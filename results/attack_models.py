"""Attack the reader of models: mutate the protobuf fields of exported models, and open and run what is admitted.

`python -m results.attack_models --count 2000 --seed 1` adds one run to results/attacks.json. Each mutant goes through
`open_model`, a batch of 64 random pictures and the gate's checks of a file.
"""

import argparse
import json
import random
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models import ResNet
from results import attack_harness
from results.attack_harness import add_options
from toolkit.data.cifar import CLASS_NAMES
from toolkit.deploy import quantize
from toolkit.deploy.export import export_graph
from toolkit.deploy.gate import Gate
from toolkit.deploy.metadata import write_metadata
from toolkit.deploy.picture_input import prepend_picture_input
from toolkit.deploy.report import Rejected
from toolkit.errors import ToolkitError
from toolkit.inference import open_model
from toolkit.inference.model_file import MAX_MODEL_BYTES, SHIPPED_MODEL, find_fault

NUMBERS = [0, 1, -1, 2, 3, 7, 16, 255, 2**15, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -2, -(2**31), -(2**63)]
TEXTS = ["", "images", "logits", "x", "\x1b[2J", "\u202e", "a" * 300, "Relu", "Conv", "Add", "NOTSET", "SAME_UPPER"]


def make_bases() -> list[ModelProto]:
    """The shipped model, and a small network in every precision and input format."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    network = ResNet(blocks_per_stage=1, widths=(4, 6, 8)).eval()
    made = []
    for input_format in ("uint8-nhwc", "float-nchw"):
        fp32 = export_graph(network, input_format=input_format)  # type: ignore[arg-type]
        int8 = [quantize.to_int8(fp32, images, target=target)[0] for target in ("cpu", "gpu")]  # type: ignore[arg-type]
        made += [fp32, quantize.to_fp16(fp32), *int8]
    made += map(prepend_picture_input, made[:3])
    for model in made:
        write_metadata(model, {"class_names": json.dumps(CLASS_NAMES)})
    return [onnx.load(SHIPPED_MODEL), *made]


# Mutations


def all_messages(message: Any) -> list[Any]:
    """The message and every message in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type:
            for item in value if hasattr(value, "__len__") else [value]:
                found += all_messages(item)
    return found


def change_field(model: ModelProto, draw: random.Random) -> None:
    """Set, add, repeat or remove one field of one message, whether or not the message had it."""
    message = draw.choice(all_messages(model))
    present = [field for field, _ in message.ListFields()]
    field = draw.choice(present if present and draw.random() < 0.7 else list(message.DESCRIPTOR.fields))
    value = getattr(message, field.name)
    action = draw.choice(["clear", "set", "set", "repeat"])
    if action == "clear":
        message.ClearField(field.name)
    elif field.message_type:
        if hasattr(value, "__len__"):
            value.append(draw.choice(list(value))) if len(value) else value.add()
        else:
            value.SetInParent()
    else:
        new = draw_scalar(field, draw)
        if not hasattr(value, "append"):
            setattr(message, field.name, new)
        elif action == "repeat" or not len(value):
            value.extend([new] * draw.choice([1, 2, 1000]))
        else:
            value[draw.randrange(len(value))] = new


def draw_scalar(field: Any, draw: random.Random) -> Any:
    kinds = {
        field.CPPTYPE_STRING: lambda: draw.choice(TEXTS) if field.type == field.TYPE_STRING else b"\xff" * 8,
        field.CPPTYPE_FLOAT: lambda: draw.choice([0.0, -1.0, 50.0, 1e38, 1e-40, float("nan"), float("inf")]),
        field.CPPTYPE_DOUBLE: lambda: 1.0,
        field.CPPTYPE_ENUM: lambda: draw.choice(list(field.enum_type.values_by_number)),
    }
    return kinds.get(field.cpp_type, lambda: draw.choice(NUMBERS))()


def exchange_nodes(model: ModelProto, draw: random.Random) -> None:
    """Let a node take another value."""
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = draw.choice(list(model.graph.node))
    if node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(names)


def insert_nodes(model: ModelProto, draw: random.Random) -> None:
    """Put up to 900 operations of one kind after one node: what the limits of work and memory are for."""
    nodes = list(model.graph.node)
    place = draw.randrange(len(nodes) - 1)
    name, makers = nodes[place].output[0], [make_relu, make_sum, make_scaled, make_narrow, make_convolution]
    make, count, added, value = draw.choice(makers), draw.choice([1, 10, 100, 300, 900]), [], name
    for number in range(count):
        made = make(model, value, f"added{place}_{number}", draw)
        added += made
        value = made[-1].output[0]
    for node in nodes[place + 1 :]:
        node.input[:] = [value if old == name else old for old in node.input]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], *added, *nodes[place + 1 :]])


def make_relu(model: ModelProto, value: str, name: str, draw: random.Random) -> list[onnx.NodeProto]:
    return [helper.make_node("Relu", [value], [name])]


def make_sum(model: ModelProto, value: str, name: str, draw: random.Random) -> list[onnx.NodeProto]:
    return [helper.make_node("Add", [value, value], [name])]


def make_scaled(model: ModelProto, value: str, name: str, draw: random.Random) -> list[onnx.NodeProto]:
    factor = np.float32(draw.choice([0.5, 1.0, 1e-30, 1e30]))
    model.graph.initializer.append(numpy_helper.from_array(np.full((1,), factor), f"{name}_factor"))
    return [helper.make_node("Mul", [value, f"{name}_factor"], [name])]


def make_narrow(model: ModelProto, value: str, name: str, draw: random.Random) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [value], [f"{name}_half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT),
    ]


def make_convolution(model: ModelProto, value: str, name: str, draw: random.Random) -> list[onnx.NodeProto]:
    channels, side = draw.choice([3, 4, 6, 8, 16, 32, 64]), draw.choice([1, 3])
    factor = draw.choice([0, 1e-3, 1e-20, 1e-40])
    weight = f"{channels}_{side}_{factor}"  # shared, else the file would be too large
    if all(tensor.name != weight for tensor in model.graph.initializer):
        array = np.full((channels, channels, side, side), factor, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, weight))
    return [helper.make_node("Conv", [value, weight], [name], pads=[side // 2] * 4)]


def widen(model: ModelProto, draw: random.Random) -> None:
    """Give every convolution many more channels."""
    factor = draw.choice([2, 4, 8, 16])
    if model.ByteSize() * factor**2 > 2 * MAX_MODEL_BYTES:
        raise ValueError("the reader would not look into a file of this size")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) in (1, 4) and "scale" not in tensor.name:
            array = numpy_helper.to_array(tensor)
            if array.shape[0] >= 4 and array.shape[0] != 10:
                repeats = (factor, 1 if array.shape[1] == 3 else factor, 1, 1) if array.ndim == 4 else (factor,)
                tensor.CopyFrom(numpy_helper.from_array(np.tile(array, repeats), tensor.name))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64 and array.shape == (2,):
            tensor.CopyFrom(numpy_helper.from_array(array * np.array([1, factor]), tensor.name))
        elif array.shape[:1] == (10,) and array.ndim == 2 and array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(np.tile(array, (1, factor)), tensor.name))


def rescale_weights(model: ModelProto, draw: random.Random) -> None:
    """Make the weights of a tensor, or of all, denormal, immense, infinite or not a number."""
    factor = draw.choice([1e-38, 1e-42, 1e38, np.inf, np.nan, 0])
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    for tensor in draw.sample(tensors, draw.choice([1, len(tensors)])) if tensors else []:
        with np.errstate(all="ignore"):
            array = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


MUTATIONS = [*[change_field] * 8, exchange_nodes, insert_nodes, insert_nodes, widen, rescale_weights]


def make_mutant(bases: list[ModelProto], draw: random.Random) -> bytes:
    """The file of one base after one to four mutations."""
    model = ModelProto.FromString(draw.choice(bases).SerializeToString())
    for mutate in draw.choices(MUTATIONS, k=draw.choice([1, 1, 2, 4])):
        with suppress(ValueError, TypeError, LookupError, AttributeError, OverflowError):
            mutate(model, draw)  # an earlier one may have left nothing to change, or the field takes no such value
    content: bytes = model.SerializeToString()
    return content


# Running a mutant


@dataclass
class ModelAttack:
    """Mutants of exported models; those that the reader admits are run, and go through the gate's checks of a file."""

    bases: list[bytes]
    seed: int
    kind: str = "models"
    memory: int = 3 * 2**30

    def make(self, number: int) -> bytes:
        """A mutant that is small enough for the reader to look into it."""
        parsed = [ModelProto.FromString(base) for base in self.bases]
        draw = random.Random(f"{self.seed} {number}")
        while len(content := make_mutant(parsed, draw)) > MAX_MODEL_BYTES:
            pass
        return content

    def read(self, content: bytes) -> str:
        if fault := find_fault(content):
            return "refused" if fault.isprintable() and len(fault) < 1000 else f"raw text in a message: {fault!r}"
        outcome = "read"
        for use in (run_model, check_model):
            try:
                use(content)
            except ToolkitError as error:
                message = str(error)
                outcome = "damaged" if message.isprintable() else f"raw text in a message: {message!r}"
        return outcome


def run_model(content: bytes) -> None:
    """Open the model and run it on 64 random pictures."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(content)
        file.flush()
        session = open_model(file.name, provider="cpu", threads=1)
    shape = (64, 40, 48, 3) if session.takes_pictures else (64, 32, 32, 3)
    session.logits_and_probabilities(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def check_model(content: bytes) -> None:
    with suppress(Rejected):
        Gate(content, min_accuracy=0.5, provider="cpu").check_file(CLASS_NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, count=10_000)
    options = parser.parse_args()
    attack_harness.main([ModelAttack([base.SerializeToString() for base in make_bases()], options.seed)], options)


if __name__ == "__main__":
    main()
