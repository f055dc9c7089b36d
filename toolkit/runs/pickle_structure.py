"""Check the opcodes of a checkpoint's pickle before it is loaded.

A stack machine tracks the kind of each value instead of building it. It requires text or small numbers as dictionary
keys (hashing n nested pairs of the same tuple takes 2**n steps), objects without attributes, and no calls except those
that rebuild a tensor and its empty dictionary of hooks.
"""

import pickletools
from typing import Any

MAX_BYTES = 2**20
MAX_OPCODES = 150_000  # resnet32 with Adam has 17,000

_PROTOCOL = 2  # torch's; it only warns of others

TEXT, NUMBER, OTHER, LIST, DICTIONARY, TUPLE, TENSOR, HOOKS, STORAGE, STORAGE_TYPE, CALL_HOOKS, CALL_TENSOR = range(12)

_GLOBALS = {
    "collections OrderedDict": CALL_HOOKS,
    "torch._utils _rebuild_tensor_v2": CALL_TENSOR,
    **{
        f"torch {kind}Storage": STORAGE_TYPE
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")
    },
}
Kind = int | tuple[Any, ...]

_VALUES: dict[str, Kind] = {
    "EMPTY_DICT": DICTIONARY, "EMPTY_LIST": LIST, "EMPTY_TUPLE": (), "BINUNICODE": TEXT, "BININT": NUMBER,
    "BININT1": NUMBER, "BININT2": NUMBER, "LONG1": OTHER, "BINFLOAT": OTHER, "NONE": OTHER, "NEWTRUE": OTHER,
    "NEWFALSE": OTHER,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LONGEST_ARGUMENTS = 6

_STORAGE_REFERENCE = (TEXT, STORAGE_TYPE, TEXT, TEXT, NUMBER)


def check_pickle(content: bytes) -> None:
    """Check that a pickle contains only what a checkpoint of this toolkit does.

    Raises:
        ValueError, LookupError, TypeError: it contains something else, or is damaged.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"its pickle has {len(content):,} bytes")
    machine = _Machine()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if number > MAX_OPCODES:
            raise ValueError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
        machine.follow(opcode.name, argument)


class _Machine:
    """The kinds of the values that an unpickler would have on its stack."""

    def __init__(self) -> None:
        self.stack: list[Kind] = []
        self.marks: list[int] = []
        self.memo: dict[int, Kind] = {}

    def follow(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(_VALUES[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("TUPLE", *_TUPLES):
            values = self._pop(_TUPLES.get(name))
            self.stack.append(tuple(values) if len(values) <= _LONGEST_ARGUMENTS else TUPLE)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2 if name == "SETITEM" else None))
        elif name in ("APPEND", "APPENDS"):
            self._pop(1 if name == "APPEND" else None)
            self._require(self.stack[-1] == LIST, "appends to a value that is not a list")
        elif name == "GLOBAL":
            self._require(argument in _GLOBALS, f"names {argument}")
            self.stack.append(_GLOBALS[argument])
        elif name == "REDUCE":
            self._call()
        elif name == "BINPERSID":
            self._require(self._pop(1)[0] == _STORAGE_REFERENCE, "refers to a value that is not a storage")
            self.stack.append(STORAGE)
        elif name == "PROTO":
            self._require(argument == _PROTOCOL, f"has the protocol {argument}")
        else:
            self._require(name == "STOP", f"has the opcode {name}")

    def _pop(self, count: int | None) -> list[Kind]:
        """Take the last `count` values; None for those above the last mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        lowest = self.marks[-1] if self.marks else 0
        self._require(lowest <= start <= len(self.stack), "pops more values than it has pushed")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _set_items(self, values: list[Kind]) -> None:
        self._require(self.stack[-1] == DICTIONARY and len(values) % 2 == 0, "sets items of a non-dictionary")
        self._require(all(key in (TEXT, NUMBER) for key in values[::2]), "has keys that are neither text nor numbers")

    def _call(self) -> None:
        function, arguments = self._pop(2)
        if function == CALL_HOOKS:
            self._require(arguments == (), "fills an OrderedDict")
            self.stack.append(HOOKS)
            return
        self._require(function == CALL_TENSOR and isinstance(arguments, tuple), "makes a call that is not allowed")
        assert isinstance(arguments, tuple)
        self._require(len(arguments) == 6 and arguments[0] == STORAGE and arguments[5] == HOOKS, "has an odd tensor")
        self.stack.append(TENSOR)

    def _require(self, condition: bool, fault: str) -> None:
        if not condition:
            raise ValueError(f"its pickle {fault}, which no checkpoint does")
