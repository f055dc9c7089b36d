"""uvicorn's HTTP/1.1 protocol, with limits on the head and framing of a request and a shutdown that loses none.

uvicorn alone has no timeout for a head, stores headers of any size, and treats trailers as headers.
"""

import asyncio
import json
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 64 * 2**10

# Of a chunked body beside its contents: sizes of chunks, their extensions, trailers. A chunk of one byte has five.
FRAMING_BYTES = 64 * 2**10
FRAMING_BYTES_PER_BYTE = 8


class GuardedProtocol(HttpToolsProtocol):
    """One connection of a client.

    Attributes:
        head_seconds: limit for a new connection's first byte, and from the first byte of a head to its end; then 408.
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
    _framing_bytes = 0  # of the body so far, less those that its contents allow
    _message_ended = False  # in the bytes that were received last
    _body_unread = False
    _answered: RequestResponseCycle | None = None  # uvicorn's `cycle` is the newest, which may wait for this one
    _draining = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(self.head_seconds, self._end_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._body_unread:
            self._framing_bytes += len(data)
        self._message_ended = False
        super().data_received(data)
        self._check_sizes(len(data))
        if self.transport.is_closing():
            self._disconnect()

    def _check_sizes(self, received: int) -> None:
        """Count the bytes of the head; end a request whose head or body framing exceeds its limit."""
        if self._head_bytes is not None and not self._message_ended:  # else part of it belongs to another request
            self._head_bytes += received
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the head of the request has more than {HEAD_BYTES:,} bytes")
        elif self._body_unread and self._framing_bytes > FRAMING_BYTES:
            self.transport.close()

    def _disconnect(self) -> None:
        """End the request that is being answered: writing its response to a closed connection would be an error."""
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._start_timer(self.head_seconds, self._end_slow_head)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_bytes is not None:  # else a trailer, which nothing here reads
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= (1 + FRAMING_BYTES_PER_BYTE) * len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._body_unread = True
        self._framing_bytes = 0
        self._stop_timer()
        super().on_headers_complete()
        if not self.pipeline:
            self._answered = self.cycle
        if self._draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._body_unread = False
        self._message_ended = True
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._answered = self.pipeline[-1][0] if self.pipeline else None
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
