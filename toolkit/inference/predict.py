"""Paths -> predictions, streamed: threads decode pictures and run the model side by side, and nothing piles up.

On the CPU each thread runs the model by itself, on the pictures that it has just decoded. Threads that share a batch
wait for each other at every layer, and for a core that is busy decoding: measured with resnet20 on two cores, waiting
alone takes a fifth more processor time. A GPU is fed from one thread (ONNX Runtime sets itself up anew for each), and
the others decode for it.
"""

import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.errors import ToolkitError, UsageError
from toolkit.inference.image import MAX_BYTES, SIDE, is_picture_name, prepare, read_image
from toolkit.inference.session import Session
from toolkit.names import display

STDIN = "-"
BATCH_SIZE = 64
MAX_BATCH_SIZE = 4096  # about 1 GiB of activations

# More threads than this do not help: a tenth of the work on a small picture is Python, where one runs at a time.
MAX_WORKERS = 16

# So many pictures are handed to a thread at a time. Handing over costs as much as a third of decoding a small one; the
# model is as fast on 16 pictures as on any number above; and with more, a few photographs would keep one thread busy
# and leave none for the others.
_SHARE = 16

PathLike = str | os.PathLike[str]
Source = PathLike | NDArray[np.uint8] | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What the model sees in one picture.

    Attributes:
        path: the picture's path as the file system has it (`display` and `as_text` make it safe to show and to
            store), "-" for standard input, and "" for a picture that did not come from a file.
        label: the most probable class.
        index: its place among the model's classes, 0 to 9.
        probability: what the model gives it, 0 to 1.
        top: the most probable classes with their probabilities, best first, as many as were asked for.
    """

    path: str
    label: str
    index: int
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Failure:
    """A path that gave no prediction, and why: one line that begins with the path and is safe to show."""

    path: str
    error: str


def stream(
    session: Session, paths: Iterable[PathLike], *, workers: int, batch_size: int = BATCH_SIZE, top: int = 1
) -> Iterator[Prediction | Failure]:
    """Predict every picture that `paths` name, in their order, and yield each result once its batch is done.

    A path is a file, a folder (with all folders in it; see `expand`), a glob, or "-": one picture on standard input.
    Paths are taken as they are needed, and memory does not grow with their number. `workers` threads decode; on the
    CPU they run the model too, each on as many processor threads as the session has.

    Raises:
        UsageError: `batch_size` or `top` is out of range.
        ToolkitError: the model failed. A bad picture does not raise: it yields a `Failure`.
    """
    check_options(batch_size=batch_size, top=top)
    return classify(session, expand(paths), workers=workers, batch_size=batch_size, top=top)


def classify(
    session: Session, sources: Iterable[Source | Failure], *, workers: int, batch_size: int = BATCH_SIZE, top: int = 1
) -> Iterator[Prediction | Failure]:
    """As `stream`, of pictures that are named one by one or are in memory; a `Failure` is handed on in its place."""
    share = min(batch_size, _SHARE)

    def predict_several(several: list[_Taken]) -> list[Prediction | Failure]:
        return _predicted(session, _decode_several(several), top)

    if session.provider == "cpu":
        with closing(_in_threads(predict_several, sources, threads=workers, share=share)) as results:
            yield from results
        return
    with closing(_in_threads(_decode_several, sources, threads=workers, share=share, ahead=2 * batch_size)) as decoded:
        while batch := list(islice(decoded, batch_size)):
            yield from _predicted(session, batch, top)


def check_options(*, batch_size: int, top: int) -> None:
    """Raises UsageError where a batch size or a number of classes is out of range."""
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError(f"the batch size must lie between 1 and {MAX_BATCH_SIZE}, not {batch_size}")
    if not 1 <= top <= 10:
        raise UsageError(f"top must lie between 1 and 10, the number of classes, not {top}")


def expand(paths: Iterable[PathLike]) -> Iterator[str | Failure]:
    """The pictures that `paths` name, found as they are asked for.

    A path that exists is never taken for a glob. A folder gives the files in it whose names end like a picture's, by
    name, then those of its folders; hidden names are passed over, and a folder that links lead to again is read once.
    """
    for named in paths:
        path = os.fspath(named)
        if path == STDIN or not glob.has_magic(path) or os.path.lexists(path):
            yield from _pictures_at(path)
            continue
        matches = _matches(path)
        if not matches:
            yield Failure(path, f"{display(path)}: no file has such a name, and none matches it as a pattern")
        for match in matches:
            yield from _pictures_at(match)


def _matches(pattern: str) -> list[str]:
    if "**" not in pattern:
        return sorted(glob.iglob(pattern))
    # pathlib's ** does not follow links into folders, so a loop of links ends; glob's does.
    whole = Path(pattern)
    found = Path(whole.anchor).glob(str(whole.relative_to(whole.anchor)))
    try:
        return sorted(str(path) for path in found if not path.is_dir())
    except ValueError:  # ** as a part of a name is no pattern for pathlib
        return []


def _pictures_at(path: str) -> Iterator[str | Failure]:
    if path == STDIN or not os.path.isdir(path):
        yield path
        return
    found = False
    for picture in _pictures_below(path):
        found = True
        yield picture
    if not found:
        yield Failure(path, f"{display(path)}: no picture in this folder (by the endings of the file names)")


def _pictures_below(top: str) -> Iterator[str | Failure]:
    visited: set[tuple[int, int]] = set()
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            files, inner = _names_in(folder)
        except OSError as error:
            yield Failure(folder, f"{display(folder)}: cannot be listed: {error.strerror or error}")
            continue
        yield from (os.path.join(folder, name) for name in files)
        folders += (os.path.join(folder, name) for name in reversed(inner))


def _names_in(folder: str) -> tuple[list[str], list[str]]:
    """The names of a folder's pictures and of its folders, sorted: of a million entries the names alone are kept."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _leads_to_folder(entry):
                folders.append(entry.name)
            elif is_picture_name(entry.name):
                files.append(entry.name)
    return sorted(files), sorted(folders)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


@dataclass(frozen=True)
class _Piped:
    """What came on standard input."""

    content: bytes


_Taken = Source | Failure | _Piped
_Decoded = tuple[str, NDArray[np.uint8]] | Failure
_Result = TypeVar("_Result")


def _in_threads(
    work: Callable[[list[_Taken]], list[_Result]],
    sources: Iterable[Source | Failure],
    *,
    threads: int,
    share: int,
    ahead: int = 0,
) -> Generator[_Result, None, None]:
    """What `work` makes of the sources, in order; each thread takes `share` of them at a time.

    At any time two shares for each thread are waiting, being worked on or done, or `ahead` sources where that is more.
    """
    sources = iter(sources)
    most = max(2 * threads, ahead // share)
    pending: deque[Future[list[_Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="predict") as pool:
        try:
            while several := [_taken(source) for source in islice(sources, share)]:
                pending.append(pool.submit(work, several))
                while pending and (len(pending) >= most or pending[0].done()):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _taken(source: Source | Failure) -> _Taken:
    """Read standard input here, not in a thread: one that waits for input could not be interrupted."""
    if isinstance(source, str) and source == STDIN:
        return _Piped(sys.stdin.buffer.read(MAX_BYTES + 1))
    return source


def _decode_several(sources: list[_Taken]) -> list[_Decoded]:
    return [_decode(source) for source in sources]


def _decode(source: _Taken) -> _Decoded:
    if isinstance(source, Failure):
        return source
    if isinstance(source, np.ndarray):
        return "", source if source.shape == (SIDE, SIDE, 3) else prepare(Image.fromarray(source))
    if isinstance(source, Image.Image):
        return "", prepare(source)
    path = STDIN if isinstance(source, _Piped) else os.fspath(source)
    try:
        if isinstance(source, _Piped):
            return path, read_image(source.content, name="standard input")
        return path, read_image(path)
    except ToolkitError as error:
        return Failure(path, str(error))


def _predicted(session: Session, batch: list[_Decoded], top: int) -> list[Prediction | Failure]:
    probabilities = _probabilities(session, [item[1] for item in batch if not isinstance(item, Failure)])
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]  # (N, top)
    rows = zip(best.tolist(), np.take_along_axis(probabilities, best, axis=1).tolist(), strict=True)
    return [
        item if isinstance(item, Failure) else _prediction(item[0], *next(rows), session.class_names) for item in batch
    ]


def _probabilities(session: Session, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    if not images:
        return np.empty((0, 10), np.float32)
    _, probabilities = session.logits_and_probabilities(np.stack(images))  # (N, 10)
    if not np.isfinite(probabilities).all():
        raise ToolkitError(
            f"{display(session.path)}: the model gives values that are no numbers; `cifar verify` examines it"
        )
    return probabilities


def _prediction(path: str, best: list[int], values: list[float], class_names: tuple[str, ...]) -> Prediction:
    ranked = tuple((class_names[index], value) for index, value in zip(best, values, strict=True))
    label, probability = ranked[0]
    return Prediction(path, label, best[0], probability, ranked)
