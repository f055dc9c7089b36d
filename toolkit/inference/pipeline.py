"""Paths -> predictions, streamed: threads decode pictures and run the model, with a bounded number in memory.

On the CPU each thread runs the model on the pictures that it has just decoded. With one batch shared by all threads,
these wait for each other at every layer, which takes a fifth more processor time (resnet20, two cores). On a GPU, one
thread runs the model, since ONNX Runtime allocates buffers for each thread; the others decode.

On the CPU, the caller can request additional processes for many pictures (`toolkit.inference.sharing`).
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ToolkitError, UsageError
from toolkit.files import escape
from toolkit.inference.paths import Decoded, Failure, PathLike, Source, Taken, decode_several, expand, take
from toolkit.inference.session import Session

BATCH_SIZE = 64
MAX_BATCH_SIZE = 4096  # about 1 GiB of activations

# More threads do not help: a tenth of the work on a small picture is Python, which runs in one thread at a time.
MAX_WORKERS = 16

# Pictures per task of a thread. The overhead of a task is a third of the time to decode a small picture, and the model
# is as fast on 16 pictures as on more. Larger chunks would leave threads idle when there are only a few photographs.
_CHUNK = 16

# Pictures per task with processes. Each chunk costs a request and a response, after which the process waits for the
# next chunk. Chunks of 16 take 4% more processor time per picture, and cause twice as many waits.
_CHUNK_WITH_PROCESSES = 32

# The smallest number of pictures for which to start processes: each start takes a third of a second on one core.
PROCESSES_FROM = 2000

# Longest time to look for that many paths, in seconds, so that a slow disk does not delay the first result.
_LOOK_AHEAD = 0.2


@dataclass(frozen=True)
class Prediction:
    """The classes that the model assigns to one picture.

    Attributes:
        path: the picture's path as in the file system (`escape` and `as_text` make it safe to show and to store),
            "-" for standard input, "" for a picture that did not come from a file.
        label: the most probable class.
        index: its index among the model's classes.
        probability: its probability, in [0, 1].
        top: the requested number of classes with their probabilities, most probable first.
    """

    path: str
    label: str
    index: int
    probability: float
    top: tuple[tuple[str, float], ...]


def stream(
    session: Session,
    paths: Iterable[PathLike],
    *,
    workers: int,
    batch_size: int = BATCH_SIZE,
    top: int = 1,
    processes: bool = False,
) -> Iterator[Prediction | Failure]:
    """Predict every picture that `paths` name, in order, and yield each result once its batch is done.

    A path is a file, a folder (with its subfolders; see `expand`), a glob, or "-": one picture on standard input.
    Paths are consumed as needed, and memory does not grow with their number. `workers` threads decode; on the CPU they
    also run the model, each with as many processor threads as the session has.

    With `processes` on the CPU, if at least `PROCESSES_FROM` paths are found in `_LOOK_AHEAD` seconds, `workers - 1`
    processes are started, and the threads send pictures to idle processes.

    Raises:
        UsageError: `batch_size` or `top` is out of range.
        ToolkitError: the model failed. A bad picture does not raise: it yields a `Failure`.
    """
    check_options(batch_size=batch_size, top=top, class_count=len(session.class_names))
    if processes and session.provider == "cpu" and workers > 1 and not session.takes_pictures:
        return _stream_with_processes(session, expand(paths), workers=workers, batch_size=batch_size, top=top)
    return classify(session, expand(paths), workers=workers, batch_size=batch_size, top=top)


def _stream_with_processes(
    session: Session, sources: Iterator[str | Failure], *, workers: int, batch_size: int, top: int
) -> Iterator[Prediction | Failure]:
    known = _look_ahead(sources)
    sources = chain(known, sources)
    if len(known) < PROCESSES_FROM:
        yield from classify(session, sources, workers=workers, batch_size=batch_size, top=top)
        return
    from toolkit.inference.sharing import PredictionProcesses  # not needed for a few pictures

    with PredictionProcesses(session, workers - 1) as helpers:
        yield from classify(
            session, sources, workers=workers, batch_size=batch_size, top=top, predict_elsewhere=helpers.predict
        )


def _look_ahead(sources: Iterator[str | Failure]) -> list[str | Failure]:
    """Take the first `PROCESSES_FROM` sources, or as many as are found in `_LOOK_AHEAD` seconds."""
    deadline = time.monotonic() + _LOOK_AHEAD
    known = []
    for source in islice(sources, PROCESSES_FROM):
        known.append(source)
        if time.monotonic() > deadline:
            break
    return known


PredictElsewhere = Callable[[Sequence[Taken], int], list[Prediction | None] | None]


def classify(
    session: Session,
    sources: Iterable[Source | Failure],
    *,
    workers: int,
    batch_size: int = BATCH_SIZE,
    top: int = 1,
    predict_elsewhere: PredictElsewhere | None = None,
) -> Iterator[Prediction | Failure]:
    """Predict single pictures as `stream` does, from paths or in memory; pass each `Failure` through.

    On the CPU, a thread first calls `predict_elsewhere`, and then predicts the pictures without a result itself: all of
    them if it returned None, because no process is idle.
    """
    chunk_size = min(batch_size, _CHUNK if predict_elsewhere is None else _CHUNK_WITH_PROCESSES)
    if session.takes_pictures:  # of any size: one at a time in memory
        workers = chunk_size = 1

    def predict_chunk(chunk: list[Taken]) -> list[Prediction | Failure]:
        found = predict_elsewhere(chunk, top) if predict_elsewhere else None
        found = [None] * len(chunk) if found is None else found
        rest = [source for source, result in zip(chunk, found, strict=True) if result is None]
        decoded = decode_several(rest, resize=not session.takes_pictures)
        here = iter(predict_decoded(session, decoded, top) if rest else ())
        return [next(here) if result is None else result for result in found]

    if session.provider == "cpu" or session.takes_pictures:
        with closing(_run_in_threads(predict_chunk, sources, threads=workers, chunk_size=chunk_size)) as results:
            yield from results
        return
    with closing(
        _run_in_threads(decode_several, sources, threads=workers, chunk_size=chunk_size, min_buffered=2 * batch_size)
    ) as decoded:
        while batch := list(islice(decoded, batch_size)):
            yield from predict_decoded(session, batch, top)


def check_options(*, batch_size: int, top: int, class_count: int) -> None:
    """Raise `UsageError` where the batch size or the number of classes to list is out of range."""
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise UsageError(f"the batch size must lie between 1 and {MAX_BATCH_SIZE}, not {batch_size}")
    if not 1 <= top <= class_count:
        raise UsageError(f"top must lie between 1 and {class_count}, the number of classes, not {top}")


_Result = TypeVar("_Result")


def _run_in_threads(
    work: Callable[[list[Taken]], list[_Result]],
    sources: Iterable[Source | Failure],
    *,
    threads: int,
    chunk_size: int,
    min_buffered: int = 0,
) -> Generator[_Result, None, None]:
    """Yield the results of `work` in the order of the sources; each call receives a chunk of up to `chunk_size`.

    At most two chunks a thread are in memory at any time, or `min_buffered` sources if that is more.
    """
    sources = iter(sources)
    limit = max(2 * threads, min_buffered // chunk_size)
    pending: deque[Future[list[_Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="predict") as pool:
        try:
            while chunk := [take(source) for source in islice(sources, chunk_size)]:
                pending.append(pool.submit(work, chunk))
                while pending and (len(pending) >= limit or pending[0].done()):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # drop the queued chunks, wait for the running ones


def predict_decoded(session: Session, batch: Sequence[Decoded], top: int) -> list[Prediction | Failure]:
    """Run the model once on decoded pictures; a `Failure` keeps its place.

    Args:
        session: the open model.
        batch: decoded pictures, with a `Failure` in place of one that could not be decoded.
        top: the number of classes that each prediction lists.

    Raises:
        ToolkitError: the model failed.
    """
    probabilities = _probabilities(session, [item[1] for item in batch if not isinstance(item, Failure)])
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]  # (N, top)
    rows = zip(best.tolist(), np.take_along_axis(probabilities, best, axis=1).tolist(), strict=True)
    return [
        item if isinstance(item, Failure) else _prediction(item[0], *next(rows), session.class_names) for item in batch
    ]


def _probabilities(session: Session, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """float32 (N, K) for K classes."""
    if not images:
        return np.empty((0, len(session.class_names)), np.float32)
    _, probabilities = session.logits_and_probabilities(np.stack(images))
    if not np.isfinite(probabilities).all():
        raise ToolkitError(
            f"{escape(session.path)}: the model's probabilities are not finite; `cifar verify` examines the file"
        )
    return probabilities


def _prediction(path: str, best: list[int], values: list[float], class_names: tuple[str, ...]) -> Prediction:
    ranked = tuple((class_names[index], value) for index, value in zip(best, values, strict=True))
    label, probability = ranked[0]
    return Prediction(path, label, best[0], probability, ranked)
