"""What the tests of hostile input share: too little disk, no right to write, little memory, and files built to harm."""

import ctypes
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, settings
from onnx import helper, numpy_helper

from models import build_model
from tests.support.onnx_models import external, tiny_model
from toolkit.data.cifar import CLASS_NAMES

if sys.platform != "win32":
    import resource

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files and limits")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux limits")

# FUZZ_EXAMPLES=100000 runs the fuzz tests for longer.
fuzzing = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "200")), deadline=None, suppress_health_check=list(HealthCheck)
)


@contextmanager
def full_disk(*, room: int = 4096) -> Iterator[None]:
    """The kernel refuses to make a file longer than `room` bytes (RLIMIT_FSIZE; Python ignores the signal)."""
    with _limited(resource.RLIMIT_FSIZE, room):
        yield


@contextmanager
def little_memory(*, room: int = 2**30) -> Iterator[None]:
    """Whatever asks for more than `room` bytes beyond what the process has fails at once (RLIMIT_AS, on Linux)."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + room):
        yield


@contextmanager
def _limited(what: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32 * 1) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """The superuser too is held by the permissions of files: this thread lays CAP_DAC_OVERRIDE down for a while."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held = (_Capabilities * 2)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, held) != 0:
        pytest.skip("no capabilities here")
    before = held[0].effective[0]
    held[0].effective[0] = before & ~(1 << 1)
    if libc.capset(header, held) != 0:
        pytest.skip("capabilities cannot be changed here")
    try:
        yield
    finally:
        held[0].effective[0] = before
        assert libc.capset(header, held) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made, changed or removed in `folder`."""
    folder.chmod(0o555)
    try:
        with bound_by_permissions():
            yield
    finally:
        folder.chmod(0o755)


def contents(folder: Path) -> dict[str, bytes]:
    """Every ordinary file in a folder, hidden ones too, with what is in it (sparse ones as their size)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.stat().st_size < 2**27 else b"large"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Files that are no files, at `path`.


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 * 2**30)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL = {"fifo": os.mkfifo, "zeros": link_to_zeros, "loop": link_to_itself, "folder": os.mkdir, "sparse": sparse}


# A pickle that writes a file named `executed` into the current folder.


class Malicious:
    def __reduce__(self) -> object:
        return (Path.write_text, (Path("executed"), "code was run"))


def malicious_pickle() -> bytes:
    return pickle.dumps(Malicious())


# Checkpoints.


def values_of_a_checkpoint(**changes: object) -> dict[str, object]:
    torch.manual_seed(0)
    values = {
        "format": 1,
        "model": "resnet20",
        "model_args": {"num_classes": 10, "dropout_rate": 0.3},
        "class_names": list(CLASS_NAMES),
        "recipe": {"epochs": 3, "run": {"seed": 0}},
        "data": {"name": "demo", "train_sha256": "0" * 64},
        "epoch": 3,
        "val_accuracy": 0.5,
        "weights": dict(build_model("resnet20").state_dict()),
        "training": None,
    }
    return values | changes


def archive(values: object) -> bytes:
    """As torch.save writes it."""
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


@cache
def whole_checkpoint() -> bytes:
    return archive(values_of_a_checkpoint())


def with_records(changes: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED, base: bytes = b"") -> bytes:
    """A whole checkpoint with some records replaced, such as `data.pkl`."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(base or whole_checkpoint())) as old,
        zipfile.ZipFile(file, "w", compression) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, changes.get(entry.filename.partition("/")[2], old.read(entry)))
    return file.getvalue()


def overlapping() -> bytes:
    """A thousand names for one record: the classical zip bomb without compression."""
    content = whole_checkpoint()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        largest = max(old.infolist(), key=lambda entry: entry.file_size)
        file = io.BytesIO(content)
        with zipfile.ZipFile(file, "a") as new:
            for number in range(1000):
                copy = zipfile.ZipInfo(f"archive/data/{number + 500}")
                for name in ("header_offset", "file_size", "compress_size", "CRC"):
                    setattr(copy, name, getattr(largest, name))
                new.filelist.append(copy)
            new._didModify = True
    return file.getvalue()


def a_terabyte() -> bytes:
    """A pickle that only calls what `weights_only` allows: `bytearray(2 ** 40)`."""
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."


def laughs() -> object:
    """Twelve lists that are ten thousand million texts when written out."""
    nested: object = "ha"
    for _ in range(12):
        nested = [nested] * 10
    return nested


CHECKPOINTS = {
    "truncated": lambda: whole_checkpoint()[:-1000],
    "half": lambda: whole_checkpoint()[: len(whole_checkpoint()) // 2],
    "foreign": lambda: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "renamed": lambda: tiny_model().SerializeToString(),
    "pickle": malicious_pickle,
    "pickle in an archive": lambda: archive({"weights": Malicious()}),
    "bomb": lambda: with_records({"data/0": bytes(2**27)}, compression=zipfile.ZIP_DEFLATED),
    "overlapping": overlapping,
    "bytearray": lambda: with_records({"data.pkl": a_terabyte()}),
    "laughs-as-a-name": lambda: archive(values_of_a_checkpoint(model=laughs())),
    "laughs": lambda: archive(values_of_a_checkpoint(recipe={"a": laughs()})),
    "a thousand million classes": lambda: archive(
        values_of_a_checkpoint(model_args={"num_classes": 10**9, "dropout_rate": 0.3})
    ),
    "an immense number": lambda: archive(values_of_a_checkpoint(epoch=10**5000)),
    "a list for a model": lambda: archive(values_of_a_checkpoint(model=["resnet20"])),
    "a number for the data": lambda: archive(values_of_a_checkpoint(data={"name": "demo", "train_sha256": 7})),
    "a tensor for the format": lambda: archive(values_of_a_checkpoint(format=torch.zeros(0))),
    "a tensor for the classes": lambda: archive(values_of_a_checkpoint(model_args={"num_classes": torch.zeros(2)})),
    "control characters": lambda: archive(values_of_a_checkpoint(class_names=["\x1b[31m", *CLASS_NAMES[1:]])),
    "without weights": lambda: archive({k: v for k, v in values_of_a_checkpoint().items() if k != "weights"}),
}


# Models.


def _varint(number: int) -> bytes:
    content = b""
    while number > 127:
        content += bytes([number & 127 | 128])
        number >>= 7
    return content + bytes([number])


def protobuf_field(number: int, content: bytes) -> bytes:
    """A field of bytes, such as a message within another."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def with_external_data(location: str) -> bytes:
    model = tiny_model()
    external(model.graph.initializer[1], location)
    return model.SerializeToString()


def behind_a_group(content: bytes) -> bytes:
    """With an empty protobuf group in front, an old form that some readers pass over and others stop at."""
    return _varint(100 << 3 | 3) + _varint(100 << 3 | 4) + content


def with_an_overlong_tag(location: str) -> bytes:
    """The graph under a field number that is 7 only to a reader that drops its highest bits."""
    model = tiny_model()
    external(model.graph.initializer[1], location)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + b"\xba\x80\x80\x80\x10" + _varint(len(graph)) + graph


def with_operator(name: str) -> bytes:
    model = tiny_model()
    model.graph.node[0].op_type = name
    return model.SerializeToString()


def with_a_sparse_tensor() -> bytes:
    model = tiny_model()
    tensor = model.graph.sparse_initializer.add()
    tensor.values.CopyFrom(model.graph.initializer[1])
    tensor.dims[:] = [2**20, 2**20]
    return model.SerializeToString()


def with_a_sparse_constant() -> bytes:
    model = tiny_model()
    node = model.graph.node.add(op_type="Constant", output=["c"])
    attribute = node.attribute.add(name="sparse_value", type=11)
    attribute.sparse_tensor.values.CopyFrom(model.graph.initializer[1])
    external(attribute.sparse_tensor.values, "/etc/passwd")
    return model.SerializeToString()


def with_a_product(side: int, *, claims: dict[str, str] | None = None) -> onnx.ModelProto:
    """Adds a product of `side` x `side` to the features: two small tensors, broadcast against each other."""
    model = tiny_model(metadata=claims)
    for name, shape in (("column", (side, 1)), ("row", (1, side))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    nodes = list(model.graph.node)
    nodes[-1].input[0] = nodes[-2].output[0] = "logits"
    nodes[-2].input[0] = "larger"
    added = [
        helper.make_node("Mul", ["column", "row"], ["product"]),
        helper.make_node("Add", ["features", "product"], ["larger"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:-2], *added, *nodes[-2:]])
    return model


MODELS = {
    "truncated": lambda: tiny_model().SerializeToString()[:-200],
    "foreign": lambda: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "renamed": lambda: b"epochs = 3\n",
    "pickle": malicious_pickle,
    "pickle in an archive": lambda: archive({"weights": Malicious()}),
    "external data": lambda: with_external_data("../weights.bin"),
    "external data, absolute": lambda: with_external_data("/etc/passwd"),
    "external data behind a group": lambda: behind_a_group(with_external_data("weights.bin")),
    "external data under an overlong tag": lambda: with_an_overlong_tag("weights.bin"),
    "external data in a sparse constant": with_a_sparse_constant,
    "other inputs": lambda: tiny_model(images="x").SerializeToString(),
    "a fixed batch": lambda: tiny_model(batch=1).SerializeToString(),
    "an operator that allocates": lambda: with_operator("ConstantOfShape"),
    "an operator that loops": lambda: with_operator("Loop"),
    "a sparse tensor": with_a_sparse_tensor,
    "a million nodes": lambda: (
        tiny_model().SerializeToString() + b"\x3a" + _varint(2_000_000) + b"\x0a\x00" * 1_000_000
    ),
}
