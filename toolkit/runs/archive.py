"""A file as `torch.save` writes it, opened without trusting it: nothing in it runs, and nothing in it grows."""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ToolkitError
from toolkit.files import open_regular

# The largest network here takes 8 MB with the state of Adam, of which the pickle is a hundredth.
MAX_BYTES = 64 * 2**20
MAX_PICKLE_BYTES = 2**20
MAX_VALUES = 100_000

# What the pickle of a checkpoint may name, and the opcodes that would name or build something in another way.
_BUILT = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")}
)
_OTHER_WAYS_TO_BUILD = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


def read_archive(path: Path) -> Any:
    """What was saved in the file at `path`, on the CPU.

    Raises:
        ToolkitError: it is no ordinary file, too large, damaged, or asks for anything but tensors and plain values.
    """
    with open_regular(path, max_bytes=MAX_BYTES) as file:
        content = file.read(MAX_BYTES)
    try:
        return torch.load(_checked(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make the readers raise nearly everything
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
        raise ToolkitError(f"{path} is not a checkpoint that can be read safely: {reason}") from error


def are_plain(values: list[Any], *, keys: Any) -> bool:
    """Whether there are only tensors, text, numbers, and lists, tuples and dictionaries of them, and a bounded number.

    Args:
        values: what is looked at, with all that is in it.
        keys: the types that a key of a dictionary may have.
    """
    # What is shared counts each time: a few bytes of lists within lists would otherwise fill the memory when written.
    remaining, count, size = list(values), 0, 0
    while remaining:
        value = remaining.pop()
        count += 1
        if isinstance(value, dict):
            if not all(isinstance(key, keys) for key in value):
                return False
            remaining += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            remaining += value
        elif isinstance(value, Tensor):
            size += value.numel() * value.element_size()
        elif isinstance(value, str):
            size += len(value)
        elif isinstance(value, int):
            if abs(value) >= 2**63:  # beyond, Python may refuse to write it down
                return False
        elif not (value is None or isinstance(value, float)):
            return False
        if count > MAX_VALUES or len(remaining) > 2 * MAX_VALUES or size > MAX_BYTES:
            return False
    return True


def _checked(content: bytes) -> io.BytesIO:
    """The zip archive anew, of the very records that were looked at: two readers may understand one file differently.

    Raises:
        ValueError: it would grow when it is unpacked, or its pickle asks for anything but tensors and plain values.
    """
    checked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as copy:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, and checkpoints are not")
        if sum(entry.file_size for entry in entries) > MAX_BYTES or len({e.filename for e in entries}) < len(entries):
            raise ValueError("its records overlap")
        for entry in entries:
            record = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                _check_pickle(record)
            copy.writestr(entry.filename, record)
    checked.seek(0)
    return checked


def _check_pickle(pickle: bytes) -> None:
    """`weights_only` lets a pickle build more than a checkpoint needs, a `bytearray` as large as the memory for one."""
    if len(pickle) > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(pickle):,} bytes")
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in _OTHER_WAYS_TO_BUILD or (opcode.name == "GLOBAL" and argument not in _BUILT):
            raise ValueError(f"its pickle asks for {argument or opcode.name}, which no checkpoint holds")
        if opcode.name == "PROTO" and argument != torch.serialization.DEFAULT_PROTOCOL:  # torch would warn, and go on
            raise ValueError(f"its pickle has the protocol {argument}")
