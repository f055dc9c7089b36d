"""Attack the reader of models: mutate the protobuf fields of exported models, and open and run what is admitted.

`python -m results.attack_models --count 2000 --seed 0` adds one run to results/attack_models.json. Each mutant goes
through `open_model`, a batch of 64 random pictures and the gate's checks of a file, in a process with limits of time
and memory that is replaced when it dies. Any outcome other than "refused", "ran" and "refused after reading" (by ONNX
Runtime) is a bug: its number is among the findings, and `--only NUMBER` runs it again.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models import ResNet
from toolkit.data.cifar import CLASS_NAMES
from toolkit.deploy import quantize
from toolkit.deploy.export import export_graph
from toolkit.deploy.gate import Gate
from toolkit.deploy.metadata import write_metadata
from toolkit.errors import ToolkitError
from toolkit.inference import open_model
from toolkit.inference.model_file import SHIPPED_MODEL, find_fault

RESULT = Path(__file__).with_suffix(".json")
SECONDS = 10  # of one mutant
MEMORY = 6 * 2**30  # bytes of address space of the worker; libraries alone take half of it
NUMBERS = [0, 1, -1, 2, 3, 7, 16, 255, 2**15, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -2, -(2**31), -(2**63)]
TEXTS = ["", "images", "logits", "x", "\x1b[2J", "\u202e", "a" * 300, "Relu", "Conv", "Add", "NOTSET", "SAME_UPPER"]


def make_bases(folder: Path) -> list[ModelProto]:
    """The shipped model, and a small network in every precision and input format; kept in `folder`."""
    if kept := sorted(folder.glob("*.onnx")):
        return [onnx.load(path) for path in kept]
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    network = ResNet(blocks_per_stage=1, widths=(4, 6, 8)).eval()
    bases = [onnx.load(SHIPPED_MODEL)]
    for input_format in ("uint8-nhwc", "float-nchw"):
        fp32 = export_graph(network, input_format=input_format)  # type: ignore[arg-type]
        int8 = [quantize.to_int8(fp32, images, target=target)[0] for target in ("cpu", "gpu")]  # type: ignore[arg-type]
        bases += [fp32, quantize.to_fp16(fp32), *int8]
    for model in bases[1:]:
        write_metadata(model, {"class_names": json.dumps(CLASS_NAMES)})
    folder.mkdir(parents=True, exist_ok=True)
    for number, model in enumerate(bases):
        onnx.save(model, folder / f"{number}.onnx")
    return bases


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
    weight = np.full((channels, channels, side, side), draw.choice([0, 1e-3, 1e-20, 1e-40]), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, f"{name}_weight"))
    return [helper.make_node("Conv", [value, f"{name}_weight"], [name], pads=[side // 2] * 4)]


def widen(model: ModelProto, draw: random.Random) -> None:
    """Give every convolution many more channels."""
    factor = draw.choice([2, 4, 8, 16])
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


def make_mutant(bases: list[ModelProto], draw: random.Random) -> tuple[str, bytes]:
    """The names of one to four mutations, and the file."""
    model = ModelProto.FromString(draw.choice(bases).SerializeToString())
    names = []
    for mutate in draw.choices(MUTATIONS, k=draw.choice([1, 1, 2, 4])):
        try:
            mutate(model, draw)
            names.append(mutate.__name__)
        except (ValueError, TypeError, IndexError, AttributeError, OverflowError):
            continue  # an earlier mutation left nothing to change, or the field takes no such value
    return "+".join(names), model.SerializeToString()


# Running a mutant


def run_mutant(content: bytes) -> str:
    """What the toolkit does with the file."""
    if fault := find_fault(content):
        assert fault.isprintable()
        assert len(fault) < 1000
        return "refused"
    outcome = "ran"
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(content)
        file.flush()
        try:
            session = open_model(file.name, provider="cpu", threads=1)
            session.logits_and_probabilities(np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8))
        except ToolkitError as error:
            outcome = "refused after reading" if str(error).isprintable() else "raw text in a message"
    try:
        Gate(content, min_accuracy=0.5, provider="cpu").check_file(CLASS_NAMES)
    except ToolkitError as error:
        return outcome if str(error).isprintable() else "raw text in a message"
    return outcome


def serve_mutants(connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        content = connection.recv_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory_of("VmRSS")
        try:
            outcome = run_mutant(content)
        except Exception as error:  # every exception is a finding
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
        connection.send((outcome, memory_of("VmHWM") - before))


def memory_of(key: str) -> int:
    """Of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


class Worker:
    """A process that runs one mutant after another, and is replaced when it dies or takes too long."""

    def __init__(self) -> None:
        self.connection, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=serve_mutants, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def run(self, content: bytes) -> tuple[str, int]:
        try:
            self.connection.send_bytes(content)
            if not self.connection.poll(SECONDS):
                return f"more than {SECONDS} s", 0
            outcome, peak = self.connection.recv()
            return outcome, peak
        except (EOFError, OSError):
            self.process.join(5)
            return f"died with {self.process.exitcode}", 0

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def attack(
    bases: list[ModelProto], count: int, seed: int, *, seconds: float, only: int | None = None
) -> dict[str, Any]:
    """Run mutants until `count` or `seconds`; return figures."""
    worker, start = Worker(), time.monotonic()
    outcomes, findings, slowest, largest, done = Counter[str](), [], (0.0, -1, ""), (0, -1, ""), 0
    for number in range(count) if only is None else [only]:
        if time.monotonic() - start > seconds:
            break
        names, content = make_mutant(bases, random.Random(f"{seed} {number}"))
        begin = time.monotonic()
        outcome, peak = worker.run(content)
        taken, done = time.monotonic() - begin, done + 1
        outcomes[outcome if outcome in ("refused", "ran", "refused after reading") else "finding"] += 1
        slowest, largest = max(slowest, (round(taken, 3), number, names)), max(largest, (peak, number, names))
        if outcome.startswith(("more", "died")):
            worker.stop()
            worker = Worker()
        if outcome not in ("refused", "ran", "refused after reading"):
            findings.append({"number": number, "mutations": names, "outcome": outcome})
    worker.stop()
    return {
        "seed": seed,
        "mutants": done,
        "outcomes": dict(outcomes),
        "slowest": dict(zip(("seconds", "number", "mutations"), slowest, strict=True)),
        "largest": dict(zip(("bytes", "number", "mutations"), largest, strict=True)),
        "findings": findings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--only", type=int)
    parser.add_argument("--bases", type=Path, default=Path("attack-bases"), help="folder for the models to mutate")
    arguments = parser.parse_args()
    figures = attack(
        make_bases(arguments.bases), arguments.count, arguments.seed, seconds=arguments.seconds, only=arguments.only
    )
    json.dump(figures, sys.stdout, indent=1)
    if arguments.only is None:
        runs = json.loads(RESULT.read_text()) if RESULT.exists() else []
        RESULT.write_text(json.dumps([*runs, figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
