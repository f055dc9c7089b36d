"""Read files of `torch.save` that are not trusted: nothing is executed, and sizes are bounded."""

import hashlib
import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ToolkitError, first_line
from toolkit.files import open_regular

# The largest network here takes 8 MB with the state of Adam, of which the pickle is a hundredth.
MAX_BYTES = 64 * 2**20
MAX_PICKLE_BYTES = 2**20
MAX_VALUES = 100_000

# The globals that the pickle of a checkpoint may name, and the opcodes that would build objects in another way.
_ALLOWED_GLOBALS = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")}
)
_DISALLOWED_OPCODES = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


def read_archive(path: Path) -> tuple[Any, str]:
    """Load the file at `path` to the CPU; return its contents and the SHA-256 of the bytes that were loaded.

    Raises:
        ToolkitError: not a regular file, too large, damaged, or with anything but tensors and plain values.
    """
    with open_regular(path, max_bytes=MAX_BYTES) as file:
        content = file.read(MAX_BYTES)
    try:
        values = torch.load(_rewrite(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files make the readers raise nearly everything
        raise ToolkitError(f"{path} is not a checkpoint that can be read safely: {first_line(error)}") from error
    return values, hashlib.sha256(content).hexdigest()


def are_plain(values: list[Any], *, keys: Any) -> bool:
    """Whether `values` are tensors, text, numbers, and lists, tuples and dictionaries of them, of bounded size.

    Args:
        values: checked with all their elements.
        keys: the allowed types of dictionary keys.
    """
    # Shared values count each time: a few bytes of nested lists would otherwise fill the memory when written.
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
            if abs(value) >= 2**63:  # Python may refuse to format larger ones
                return False
        elif not (value is None or isinstance(value, float)):
            return False
        if count > MAX_VALUES or len(remaining) > 2 * MAX_VALUES or size > MAX_BYTES:
            return False
    return True


def _rewrite(content: bytes) -> io.BytesIO:
    """Write the checked records into a new zip archive: two readers may interpret the original differently.

    Raises:
        ValueError: compressed or overlapping records, or a pickle with anything but tensors and plain values.
    """
    checked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as copy:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its records are compressed")
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
    """Raise `ValueError` for opcodes a checkpoint does not need; `weights_only` allows a `bytearray` of any size."""
    if len(pickle) > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle has {len(pickle):,} bytes")
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in _DISALLOWED_OPCODES or (opcode.name == "GLOBAL" and argument not in _ALLOWED_GLOBALS):
            raise ValueError(f"its pickle contains {argument or opcode.name}, which no checkpoint does")
        if opcode.name == "PROTO" and argument != torch.serialization.DEFAULT_PROTOCOL:  # torch only warns
            raise ValueError(f"its pickle has the protocol {argument}")
