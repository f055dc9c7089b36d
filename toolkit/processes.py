"""Call functions in another Python process, whose death raises an ordinary error.

    process = Process()
    process.call(math.sqrt, 2.0)
    process.stop()

Unlike `multiprocessing`, it never imports the program's main module, so a script needs no `__main__` guard, and the
death of one process does not affect the others.
"""

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import BinaryIO, ParamSpec, TypeVar, cast

from toolkit.errors import ToolkitError, first_line

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

_LENGTH = struct.Struct("<Q")  # precedes each message, in bytes
_STDERR_TAIL = 4096  # bytes at the end of the process's stderr that are searched for the reason of its death


class ProcessDied(ToolkitError):
    """The process ended before it answered; the message gives its exit code or signal."""


class Process:
    """A process that calls one function at a time, and ends when this process ends, for whatever reason.

    Functions are imported along the `sys.path` of this process. Their output is discarded. The process ignores Ctrl-C;
    its owner calls `stop`.

    Args:
        environment: variables added to this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from toolkit.processes import serve_calls; serve_calls()"
        self._lock = threading.Lock()  # held during a call
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | dict(environment or {}),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, function: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        """Call a function of a module there and return what it returns, or raise what it raises.

        Raises:
            ProcessDied: the process ended before the answer.
        """
        message = pickle.dumps((function, args, kwargs))
        with self._lock:
            try:
                _send(cast(BinaryIO, self._process.stdin), message)
                answer = _receive(cast(BinaryIO, self._process.stdout))
            except (OSError, EOFError, ValueError) as error:  # ValueError: the pipe was closed by `stop`
                raise ProcessDied(self._describe_end()) from error
        succeeded, value = pickle.loads(answer)
        if not succeeded:
            raise value
        return cast(Answer, value)

    def stop(self) -> None:
        """Kill the process, whatever it is doing; a call that waits in another thread raises `ProcessDied`."""
        self._process.kill()
        self._process.wait()
        with self._lock:
            for stream in (self._process.stdin, self._process.stdout, self._errors):
                with suppress(OSError):  # of a message that was on its way
                    cast(BinaryIO, stream).close()

    def _describe_end(self) -> str:
        self._process.kill()  # it may be alive with its output closed
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self._errors.closed:
            return f"the process {self.pid} {how}"
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _STDERR_TAIL))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"the process {self.pid} {how}" + (f": {lines[-1]}" if lines else "")


def serve_calls() -> None:
    """The main function of the process: answer calls until standard input ends, and then end at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of the functions must not mix with the answers
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive_calls, args=(calls,), daemon=True).start()
    while True:
        _send(answers, _answer(calls.get()))


def _receive_calls(calls: "queue.SimpleQueue[bytes]") -> None:
    """Run in a separate thread, which detects the end of the calling process even during a call."""
    with suppress(EOFError, OSError):
        while True:
            calls.put(_receive(sys.stdin.buffer))
    os._exit(0)


def _answer(content: bytes) -> bytes:
    try:
        function, args, kwargs = pickle.loads(content)
        return pickle.dumps((True, function(*args, **kwargs)))
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {first_line(error)}")
        return pickle.dumps((False, error))


def _send(stream: BinaryIO, content: bytes) -> None:
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def _receive(stream: BinaryIO) -> bytes:
    """Receive one message. Raises `EOFError` if the stream ends before its end."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(header)
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
