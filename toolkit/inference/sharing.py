"""Predict pictures in several processes: parts of decoding hold the GIL, so threads alone leave cores idle.

Each process opens the model itself. While every process is starting, busy or dead, the threads of the calling process
predict the pictures, so a dead process only reduces the speed.
"""

import gc
import queue
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from toolkit.errors import ToolkitError
from toolkit.inference.image import LARGE_PIXELS
from toolkit.inference.paths import Failure, Taken, decode_several
from toolkit.inference.pipeline import Prediction, predict_decoded
from toolkit.inference.session import Session, open_model
from toolkit.processes import Process, ProcessDied


@dataclass(frozen=True)
class ModelToOpen:
    """The model for a process to open.

    Attributes:
        path: the file.
        threads: processor threads per call.
        metadata: the metadata of the calling process's open model, to detect a replaced file.
    """

    path: str
    threads: int
    metadata: Mapping[str, str]


class PredictionProcesses:
    """Start `count` processes in the background; a context manager that stops them.

    Args:
        session: the open model, on the CPU.
        count: number of processes.
    """

    def __init__(self, session: Session, count: int) -> None:
        self._model = ModelToOpen(str(session.path), session.threads, dict(session.metadata))
        self._idle: queue.SimpleQueue[Process] = queue.SimpleQueue()
        self._processes: list[Process] = []
        self._count = count

    def __enter__(self) -> "PredictionProcesses":
        with suppress(OSError):  # no memory, or too many processes: those that started are used
            self._processes += (Process() for _ in range(self._count))
        for process in self._processes:
            threading.Thread(target=self._open_model, args=(process,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.stop()

    def _open_model(self, process: Process) -> None:
        try:
            process.call(open_in_process, self._model)
        except Exception:  # this process has opened the same model, and predicts by itself
            return
        self._idle.put(process)

    def predict(self, several: Sequence[Taken], top: int) -> list[Prediction | None] | None:
        """Predict in an idle process. None, instead of one result or all, means that the caller must predict.

        Raises:
            ToolkitError: the model failed.
        """
        paths = [source for source in several if isinstance(source, str)]
        if len(paths) < len(several):
            return None
        try:
            process = self._idle.get_nowait()
            results = process.call(predict_in_process, paths, top)
        except (queue.Empty, ProcessDied):
            return None
        self._idle.put(process)
        return results


_session: Session | None = None  # of a process that predicts for another


def open_in_process(model: ModelToOpen) -> None:
    """Open the model in this process, for `predict_in_process`.

    Raises:
        ToolkitError: the file has been replaced, or cannot be opened any more.
    """
    global _session
    warnings.simplefilter("ignore")  # Pillow's, about damaged pictures
    session = open_model(model.path, provider="cpu", threads=model.threads)
    if session.metadata != model.metadata:
        raise ToolkitError(f"{model.path} has been replaced")
    _session = session
    gc.freeze()


def predict_in_process(paths: list[str], top: int) -> list[Prediction | None]:
    """Predict pictures; return None for a picture that is large or cannot be read.

    The calling process decodes these within its memory budget, so memory does not grow with the number of processes.
    """
    assert _session is not None
    decoded = decode_several(paths, max_pixels=LARGE_PIXELS)
    return [None if isinstance(result, Failure) else result for result in predict_decoded(_session, decoded, top)]
