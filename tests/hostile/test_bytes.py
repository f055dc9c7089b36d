"""Bytes are read once, and pickles hold plain values only: checkpoints and data batches."""

import hashlib
import pickle
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import toolkit.data.batches
from tests.support.hostile import Malicious, archive, malicious_pickle, values_of_a_checkpoint, with_records
from toolkit.data.batches import read_batch, read_pickle
from toolkit.errors import ToolkitError
from toolkit.runs.checkpoint import load_checkpoint

pytestmark = pytest.mark.hostile

SECONDS = 1.0  # of processor time


def doubled(times: int = 60) -> bytes:
    """Opcodes that leave a tuple of two equal tuples of two equal tuples ..., of 2**times empty ones."""
    return b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(times))


def pickled(opcodes: bytes) -> bytes:
    return with_records({"data.pkl": b"\x80\x02" + opcodes + b"."})


def with_attributes(**attributes: object) -> bytes:
    weights = OrderedDict(values_of_a_checkpoint()["weights"])  # type: ignore[call-overload]
    weights.__dict__.update(attributes)
    return archive(values_of_a_checkpoint(weights=weights))


def with_long_extra_fields() -> bytes:
    """Each record of the list with 64 kB of empty extra fields, over which Python's reader takes quadratic time."""
    content = with_records({})
    place = content.index(b"PK\x01\x02")
    _, start = struct.unpack_from("<II", content, len(content) - 10)
    assert start == place
    listed, extra = b"", bytes(65_532)
    while content[place : place + 4] == b"PK\x01\x02":
        name = struct.unpack_from("<H", content, place + 28)[0]
        head = bytearray(content[place : place + 46])
        struct.pack_into("<H", head, 30, len(extra))
        listed += bytes(head) + content[place + 46 : place + 46 + name] + extra
        place += 46 + name
    end = bytearray(content[-22:])
    struct.pack_into("<I", end, 12, len(listed))
    return content[:start] + listed + bytes(end)


HOOKS = b"ccollections\nOrderedDict\n"
PICKLES: dict[str, Callable[[], bytes]] = {
    "a nested tuple for a key": lambda: pickled(b"}" + doubled() + b"Ns"),
    "a nested tuple for a key among others": lambda: pickled(b"}(" + doubled() + b"Nu"),
    "a nested tuple for a key of an OrderedDict": lambda: pickled(HOOKS + b"]" + doubled() + b"N\x86a\x85R"),
    "a nested tuple for the name of a storage": lambda: pickled(
        b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + doubled() + b"X\x03\0\0\0cpuK\x01tQ"
    ),
    "numbers that collide as keys": lambda: pickled(
        b"}(" + b"".join(b"\x8a\x20" + (n * (2**61 - 1)).to_bytes(32, "little") + b"N" for n in range(9_000)) + b"u"
    ),
    "a storage of a terabyte": lambda: pickled(
        b"ctorch\nFloatStorage\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R"
    ),
    "a million opcodes": lambda: pickled(b"N0" * 500_000),
    "half a million values": lambda: pickled(b"N" * 500_000),
    "more taken than put": lambda: pickled(b"N(tR"),
    "an unknown memo": lambda: pickled(b"h\x07"),
    "attributes of an OrderedDict: _metadata": lambda: with_attributes(_metadata=5),
    "attributes of an OrderedDict: values": lambda: with_attributes(values=5, pop=5),
    "a record in capitals": lambda: with_records({}).replace(b"archive/data.pkl", b"archive/DATA.pkl"),
    "a record of another folder": lambda: with_records({}).replace(b"archive/version", b"Archive/version"),
    "long extra fields": with_long_extra_fields,
    "a long class name": lambda: archive(values_of_a_checkpoint(class_names=["x" * 6_000_000, *"bcdefghij"])),
    "an escape sequence": lambda: archive(values_of_a_checkpoint(recipe={"run": {"precision": "\x1b]52;c;eA==\x07"}})),
    "a forged line": lambda: archive(values_of_a_checkpoint(data={"name": "demo\nverified", "train_sha256": "0" * 64})),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_no_checkpoint_takes_more_than_a_second_to_refuse(name: str, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(PICKLES[name]())
    start = time.thread_time()
    with pytest.raises(ToolkitError, match="best.pt is not a") as caught:
        load_checkpoint(path)
    assert time.thread_time() - start < SECONDS
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_checkpoints_of_every_optimizer_are_read(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 3))
    parameter.grad = torch.ones(3, 3)
    for optimizer in (torch.optim.SGD([parameter], momentum=0.9), torch.optim.Adam([parameter])):
        optimizer.step()
        training = {"optimizer": optimizer.state_dict(), "seconds": 1.5, "precision": "float32"}
        (tmp_path / "last.pt").write_bytes(archive(values_of_a_checkpoint(training=training)))
        loaded = load_checkpoint(tmp_path / "last.pt").training
        assert loaded is not None
        assert loaded["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]


def test_the_sha256_is_that_of_the_bytes_that_were_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced by a rename while it is read, as a training run does; export records this SHA-256."""
    path, load = tmp_path / "best.pt", torch.load
    path.write_bytes(archive(values_of_a_checkpoint(epoch=3)))
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    def replace_file(*arguments: object, **options: object) -> object:
        (tmp_path / "new.pt").write_bytes(archive(values_of_a_checkpoint(epoch=4)))
        (tmp_path / "new.pt").replace(path)
        return load(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", replace_file)
    loaded = load_checkpoint(path)
    assert (loaded.epoch, loaded.sha256) == (3, before)
    assert hashlib.sha256(path.read_bytes()).hexdigest() != before


def write_batch(path: Path) -> str:
    content = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, protocol=4)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def test_a_batch_that_is_exchanged_after_its_check_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data_batch_1"
    md5 = write_batch(path)
    check = hashlib.md5

    def exchange(content: bytes, **options: bool) -> object:
        path.write_bytes(malicious_pickle())
        return check(content, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toolkit.data.batches.hashlib, "md5", exchange)
    images, labels = read_batch(path, md5, labels="labels", classes=10)
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [0, 1]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("protocol", range(5))
def test_a_batch_that_names_code_runs_nothing(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"data": Malicious()}, protocol=protocol)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ToolkitError, match="test_batch cannot be read"):
        read_pickle(tmp_path / "test_batch", hashlib.md5(content).hexdigest())
    assert not (tmp_path / "executed").exists()
