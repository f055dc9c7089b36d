"""End a command on Ctrl-C and SIGTERM: by KeyboardInterrupt, and by `os._exit` if that takes more than two seconds.

Python raises KeyboardInterrupt once the main thread returns from native code, and exits once all threads do. A thread
of this module is notified at once: the interpreter's C handler writes the signal's number to a socket. The thread needs
the GIL, so native code that holds the GIL (hashing, parsing) works on bounded input only.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

GRACE_SECONDS = 2.0
EXIT_CODE = 130

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_SHOW_CURSOR = "\x1b[?25h"

_NOTICE_SECONDS = 0.2  # maximum delay of the thread's notification after the main thread's

_descriptions: list[Callable[[], str]] = []
_sockets: list[socket.socket] = []  # kept open


@contextmanager
def describe_interrupt(describe: Callable[[], str]) -> Iterator[None]:
    """Give the KeyboardInterrupt of the block a message, such as the progress so far and the command to resume."""
    _descriptions.append(describe)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(describe()) from interrupt
    finally:
        _descriptions.remove(describe)


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt in the block, as Ctrl-C does; a second signal ends the process at once.

    Two seconds after the first signal the process ends with exit code 130, whatever its threads are doing.
    """
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signaled = threading.Event()
    threading.Thread(target=_watch, args=(reader, signaled), name="signals", daemon=True).start()
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    outer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        if signaled.wait(_NOTICE_SECONDS if isinstance(sys.exception(), KeyboardInterrupt) else 0):
            _sockets.append(writer)  # keep watching: other threads may delay the exit
        else:
            signal.set_wakeup_fd(outer)
            signal.signal(signal.SIGTERM, handler)
            writer.close()


def _watch(reader: socket.socket, signaled: threading.Event) -> None:
    with reader:
        if not _wait_for_signal(reader):
            return
        signaled.set()
        reader.settimeout(GRACE_SECONDS)
        with suppress(TimeoutError):
            if not _wait_for_signal(reader):
                return
        _end()


def _wait_for_signal(reader: socket.socket) -> bool:
    """Wait for SIGINT or SIGTERM; False once the other end is closed."""
    while number := reader.recv(1):
        if number[0] in _SIGNALS:
            return True
    return False


def _end() -> None:
    try:
        text = "\n".join(describe() for describe in _descriptions) or "interrupted"
        os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}{text}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(EXIT_CODE)
