"""Servers to test: the application in a thread of this process, and `cifar serve` as a process of its own."""

import hashlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from uvicorn import Server

from tests.support.onnx_models import COLORS
from tests.support.sources import ROOT
from toolkit.inference import open_model
from toolkit.serving.app import create_app
from toolkit.serving.limits import RequestLimits
from toolkit.serving.model import ServedModel
from toolkit.serving.protocol import GuardedProtocol
from toolkit.serving.server import make_config


def picture(color: str = "red", size: tuple[int, int] = (32, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(file, "PNG")
    return file.getvalue()


def served_model(path: Path) -> ServedModel:
    return ServedModel(open_model(path, provider="cpu", threads=1), hashlib.sha256(path.read_bytes()).hexdigest())


@dataclass
class Address:
    """Where a server listens, and the lines that it has logged."""

    port: int
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def last_entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = json.loads(self.log[-1])
        return entry


@contextmanager
def serving(
    model: ServedModel,
    *,
    limits: RequestLimits = RequestLimits(),  # noqa: B008
    threads: int = 2,
    protocol: type[GuardedProtocol] = GuardedProtocol,
) -> Iterator[Address]:
    """The application on uvicorn, as `cifar serve` starts it, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = Address(listener.getsockname()[1])
    config = make_config(
        lambda: create_app(model, threads=threads, limits=limits, write_log=address.log.append),
        workers=1,
        protocol=protocol,
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@dataclass
class Command:
    """A running `cifar serve`."""

    process: subprocess.Popen[str]
    address: Address
    first_line: str

    def stop(self, *, signal_number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(30)


@contextmanager
def cifar_serve(*arguments: object) -> Iterator[Command]:
    """`cifar serve` on a free port of this machine, once it has said that it serves."""
    command = [sys.executable, "cli.py", "serve", "--port", "0", "--provider", "cpu", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        first_line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", first_line)
        assert found, first_line + process.stderr.read()
        address = Address(int(found[1]))
        reader = threading.Thread(target=address.log.extend, args=(process.stderr,), daemon=True)
        reader.start()
        yield Command(process, address, first_line)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


def receive(connection: socket.socket) -> bytes:
    """One whole response, by its Content-Length."""
    content = b""
    while b"\r\n\r\n" not in content:
        content += (received := connection.recv(65536))
        assert received, f"the server closed the connection after {content!r}"
    head, _, body = content.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    assert length, head
    while len(body) < int(length[1]):
        body += (received := connection.recv(65536))
        assert received, f"the server closed the connection after {head + body!r}"
    return head + b"\r\n\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    content = b""
    while received := connection.recv(65536):
        content += received
    return content


def wait_until(condition: Any, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)
