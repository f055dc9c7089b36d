"""Start and stop the server: copy the model, open the socket, run uvicorn in one process or several."""

import os
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess

from toolkit.cores import available_cores
from toolkit.errors import ToolkitError, UsageError
from toolkit.files import escape
from toolkit.inference import find_model
from toolkit.serving.app import create_app
from toolkit.serving.limits import RequestLimits
from toolkit.serving.metrics import FOLDER_VARIABLE
from toolkit.serving.model import ModelCopy, copy_model, open_copy
from toolkit.serving.protocol import GuardedProtocol

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_DRAIN_SECONDS = 60  # more than the longest accepted request takes to arrive


@dataclass(frozen=True)
class WorkerApp:
    """Build the application of one process; pickled and sent to the workers."""

    model: ModelCopy
    threads: int
    limits: RequestLimits

    def __call__(self) -> ASGIApp:
        warnings.simplefilter("ignore")  # Pillow's, about damaged pictures: each is answered with its own error
        return create_app(open_copy(self.model), threads=self.threads, limits=self.limits)


def serve(
    model: str | os.PathLike[str] | None,
    *,
    provider: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    limits: RequestLimits = RequestLimits(),  # noqa: B008  (frozen)
    announce: Callable[[str], None],
) -> None:
    """Serve the model until SIGTERM or SIGINT; then refuse connections, finish the accepted requests and return.

    The file is copied at the start: replacing it changes nothing until the next start.

    Args:
        model: as `find_model` takes it.
        provider: as `open_model` takes it.
        host: the address to listen on.
        port: 0 takes any free one.
        workers: processes; they share the cores and the port.
        limits: of each process.
        announce: takes one line, once connections are accepted.

    Raises:
        UsageError: an option is out of range.
        ToolkitError: the model cannot be opened, or the address is not free.
    """
    if workers < 1:
        raise UsageError(f"workers must be at least 1, not {workers}")
    if not 0 <= port < 2**16:
        raise UsageError(f"the port must lie between 0 and 65535, not {port}")
    path = find_model(model)
    with tempfile.TemporaryDirectory(prefix="cifar-serve-") as name:
        folder = Path(name)
        copy = copy_model(path, folder, provider=provider)
        execution = _describe_execution(path, copy)
        app = WorkerApp(copy, max(1, available_cores() // workers), limits)
        with _listen(host, port) as listener:
            announce(f"Serving {escape(path)} (SHA-256 {copy.sha256}) at {_url(listener)}, {execution}")
            _run_one(app, listener) if workers == 1 else _run_several(app, listener, workers, folder)


def _describe_execution(path: Path, copy: ModelCopy) -> str:
    """Open the copy once to check it, and describe its provider. Errors name the original file."""
    try:
        session = open_copy(copy).session
        return session.note or f"running on {session.provider}"
    except ToolkitError as error:
        raise type(error)(str(error).replace(escape(copy.path), escape(path))) from error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, ValueError) as error:  # ValueError: a name that IDNA cannot encode
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise ToolkitError(
            f"cannot listen on {escape(host)}, port {port}: {reason}; choose others with --host and --port"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_config(
    app: Callable[[], ASGIApp], *, workers: int, protocol: type[GuardedProtocol] = GuardedProtocol
) -> Config:
    """uvicorn's configuration for an application that `app` builds in each process."""
    return Config(
        app,
        factory=True,
        workers=workers,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


def _run_one(app: WorkerApp, listener: socket.socket) -> None:
    # uvicorn raises the signal that stopped it again when it exits; this handler turns SIGTERM into KeyboardInterrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        Server(make_config(app, workers=1)).run(sockets=[listener])


def _run_several(app: WorkerApp, listener: socket.socket, workers: int, folder: Path) -> None:
    metrics = folder / "metrics"
    metrics.mkdir()
    os.environ[FOLDER_VARIABLE] = str(metrics)  # for the workers, which are new processes
    try:
        _Workers(make_config(app, workers=workers), [listener]).run()
    finally:
        del os.environ[FOLDER_VARIABLE]


class _Workers(Multiprocess):
    """uvicorn's supervisor, which replaces dead workers; at the end it closes its own socket before it stops them."""

    def terminate_all(self) -> None:
        for listener in self.sockets:
            listener.close()
        super().terminate_all()
