"""The folder that `cifar predict --out` fills: a plan of parts, and a file for each part.

    plan.json          the options, and the offset of each part in the list
    pictures.jsonl     the list of all pictures, a JSON string a line
    model.onnx         a copy of the model
    part-00000.csv     the predictions of the first part, in the order of the list; complete as soon as it exists
    errors-00000.jsonl its pictures that could not be read, if any: {"path": ..., "error": ...}

A repeated command must produce the same list, so that each picture stays in the same part.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from toolkit.errors import ToolkitError
from toolkit.files import escape, open_regular, replacing
from toolkit.inference.model_file import read_model

PART_SIZE = 1000  # pictures: about a second of one core, or a minute if they are photographs
MAX_PART_SIZE = 100_000

_MAX_PLAN_BYTES = 16 * 2**20  # a billion pictures
_MAX_ERRORS_BYTES = 256 * 2**20  # of one part
_MAX_LINE = 65_536  # of the errors; the longest path has 4,096 bytes, six characters each as JSON


@dataclass(frozen=True)
class Plan:
    """The contents of `plan.json`.

    Attributes:
        working_folder: to which the paths in the list are relative.
        format: "csv" or "jsonl".
        top: number of classes that each prediction lists.
        model_sha256: of the model file.
        list_sha256: of `pictures.jsonl`.
        pictures: number of pictures.
        part_size: pictures in each part but the last.
        offsets: where each part begins in `pictures.jsonl`, in bytes.
    """

    working_folder: str
    format: str
    top: int
    model_sha256: str
    list_sha256: str
    pictures: int
    part_size: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class PartsFolder:
    """The paths of the files in the folder."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model.onnx"

    def part(self, number: int, format: str) -> Path:
        return self.path / f"part-{number:05}.{format}"

    def errors(self, number: int) -> Path:
        return self.path / f"errors-{number:05}.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder and lock it. Raises `ToolkitError` if another command is filling it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file_lock = FileLock(self.path / ".lock", timeout=0)
            file_lock.acquire()
        except Timeout as error:
            raise ToolkitError(f"another command is predicting into {escape(self.path)}: wait for it") from error
        except OSError as error:
            raise ToolkitError(f"cannot write in {escape(self.path)}: {error.strerror or error}") from error
        try:
            yield
        finally:
            file_lock.release()

    def read_errors(self, number: int) -> Iterator[str]:
        """Yield the error of each picture of a part that could not be read.

        Raises:
            ToolkitError: the file holds something else.
        """
        path = self.errors(number)
        with open_regular(path, max_bytes=_MAX_ERRORS_BYTES) as file:
            for line in iter(lambda: file.readline(_MAX_LINE), b""):
                yield _parse_error(path, line)

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed while writing; none may be running."""
        for leftover in self.path.glob(".*.partial"):
            leftover.unlink(missing_ok=True)

    def read_paths(self, offset: int, count: int) -> list[str]:
        """Read `count` paths from the list of pictures, starting at the byte `offset`."""
        with self.pictures.open("rb") as file:
            file.seek(offset)
            return [json.loads(file.readline()) for _ in range(count)]


def _parse_error(path: Path, line: bytes) -> str:
    try:
        error = json.loads(line)["error"]
        if isinstance(error, str):
            return error
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    raise ToolkitError(f"{escape(path)} is damaged: remove it and its part, and repeat the command")


def begin_plan(
    folder: PartsFolder,
    pictures: Iterable[str],
    *,
    working_folder: str,
    model: Path,
    format: str,
    top: int,
    part_size: int = PART_SIZE,
) -> Plan:
    """Write the plan, the list and a copy of the model. Finished parts are kept; another plan is an error.

    Args:
        folder: locked by the caller.
        pictures: paths, each consumed once; memory does not grow with their number.
        model: the ONNX file.
        working_folder, format, top, part_size: see `Plan`. An existing plan keeps its part size.

    Raises:
        ToolkitError: the folder holds another plan, or parts without one; a file cannot be read or written.
    """
    content = read_model(model)
    existing = read_plan(folder) if folder.plan.exists() else None
    if existing is None and (part := next(folder.path.glob("part-*"), None)):
        raise ToolkitError(
            f"{escape(part)} is a part, but {escape(folder.plan)} is missing: remove the parts, or choose another --out"
        )
    size = existing.part_size if existing else part_size
    with replacing(folder.pictures) as temporary:
        with temporary.open("w", encoding="ascii") as file:
            list_sha256, count, offsets = _write_list(file, pictures, part_size=size)
        model_sha256 = hashlib.sha256(content).hexdigest()
        plan = Plan(working_folder, format, top, model_sha256, list_sha256, count, size, offsets)
        if existing:
            _require_same(folder, existing, plan)  # before the list is replaced
    with replacing(folder.model) as temporary:
        temporary.write_bytes(content)
    with replacing(folder.plan) as temporary:
        temporary.write_text(json.dumps(asdict(plan)) + "\n", encoding="utf-8")
    return plan


def read_plan(folder: PartsFolder) -> Plan:
    """Read the plan. Raises `ToolkitError` if it cannot be read."""
    other = ToolkitError(f"{escape(folder.plan)} is not a plan of `cifar predict --out`: choose another folder")
    with open_regular(folder.plan, max_bytes=_MAX_PLAN_BYTES) as file:
        content = file.read(_MAX_PLAN_BYTES)
    try:
        values: dict[str, Any] = json.loads(content)
        plan = replace(Plan(**values), offsets=tuple(values["offsets"]))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise other from error
    if type(plan.part_size) is not int or not 1 <= plan.part_size <= MAX_PART_SIZE:
        raise other
    return plan


def _write_list(file: TextIO, pictures: Iterable[str], *, part_size: int) -> tuple[str, int, tuple[int, ...]]:
    """Return the SHA-256 of the list, the number of pictures, and the offset of each part."""
    digest, count, size, offsets = hashlib.sha256(), 0, 0, []
    for picture in pictures:
        if count % part_size == 0:
            offsets.append(size)
        line = json.dumps(picture) + "\n"
        file.write(line)
        digest.update(line.encode("ascii"))
        count, size = count + 1, size + len(line)
    return digest.hexdigest(), count, tuple(offsets)


_NAMES = {
    "working_folder": "working folder",
    "format": "--format",
    "top": "--top",
    "model_sha256": "model",
    "list_sha256": "list of pictures",
}


def _require_same(folder: PartsFolder, existing: Plan, wanted: Plan) -> None:
    if existing != wanted:
        differing = [name for field, name in _NAMES.items() if getattr(existing, field) != getattr(wanted, field)]
        found = ", ".join(differing) or "parts"
        raise ToolkitError(
            f"{escape(folder.path)} holds parts of another command, which differs in its {found}: "
            "repeat that command, or choose another --out"
        )
