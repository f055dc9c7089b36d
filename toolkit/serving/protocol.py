"""uvicorn's HTTP/1.1 protocol with limits on a request's head, and with a shutdown that answers accepted requests.

uvicorn itself waits for a head without a timeout, and stores headers of any size.
"""

import asyncio
import json
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_BYTES = 64 * 2**10


class GuardedProtocol(HttpToolsProtocol):
    """One connection of a client.

    Attributes:
        head_seconds: for a new connection's first byte, and from a request's first byte to the end of its head; 408.
        linger_seconds: how long the rest of a body is read, and discarded, after the response was sent. A connection
            that is closed with unread bytes can take the response with it.
        drain_seconds: how long an idle connection stays open at shutdown: a request that is under way when the signal
            comes is answered, with `Connection: close`.
    """

    head_seconds: float = 10
    linger_seconds: float = 5
    drain_seconds: float = 0.5

    _timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None  # received so far; None outside a head
    _body_unread = False
    _draining = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(self.head_seconds, self._end_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the head of the request has more than {HEAD_BYTES:,} bytes")

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._start_timer(self.head_seconds, self._end_slow_head)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._body_unread = True
        self._stop_timer()
        super().on_headers_complete()
        if self._draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._body_unread = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._body_unread and self.cycle.response_complete:
            self._start_timer(self.linger_seconds, self.transport.close)

    def shutdown(self) -> None:
        """Called once when the server stops."""
        self._draining = True
        if self._is_idle():
            self.loop.call_later(self.drain_seconds, self._close_if_idle)
        else:
            super().shutdown()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def _end_slow_head(self) -> None:
        if self._head_bytes is None:
            self.transport.close()  # nothing was received
        elif self._is_idle():
            self._refuse(408, f"the head of the request did not arrive within {self.head_seconds:g} seconds")
        else:
            self._start_timer(self.head_seconds, self._end_slow_head)

    def _refuse(self, status: int, message: str) -> None:
        """Answer without calling the application, and close once the client had time to read."""
        if not self._is_idle():  # pipelined behind a request that is being answered
            self.transport.close()
            return
        body = json.dumps({"error": message}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self._refused = True
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.write_eof()
        self._start_timer(self.linger_seconds, self.transport.close)

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
