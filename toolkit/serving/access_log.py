"""Log each request as one line of JSON, and count it: the outermost layer of the application."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.serving.metrics import Metrics

CLIENT_GONE = 499  # logged and counted where the client closed the connection before its response

_MAX_PATH = 200


class AccessLog:
    """Logs and counts each request of `app` once its response is sent.

    Args:
        app: the application.
        metrics: counts the requests.
        write: takes each line, with its line end.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, write: Callable[[str], object]) -> None:
        self._app = app
        self._metrics = metrics
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = CLIENT_GONE

        async def note_status_and_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status_and_send)
        finally:
            seconds = time.perf_counter() - begin
            self._metrics.count_request(_endpoint(scope), status, seconds)
            self._write(_line(scope, status, seconds))


def _endpoint(scope: Scope) -> str:
    """Return the name of the function that answered; all unknown paths share the label "none"."""
    return getattr(scope.get("endpoint"), "__name__", "none")


def _line(scope: Scope, status: int, seconds: float) -> str:
    client = scope.get("client")
    fields = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:_MAX_PATH],
        "status": status,
        "milliseconds": round(seconds * 1000, 2),
    }
    return json.dumps(fields) + "\n"  # ASCII, without control characters
