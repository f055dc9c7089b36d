"""Limits on the size, number and duration of requests, each with the status of a request beyond it.

The limits on a request's head (408, 431) apply earlier: see `protocol.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RequestLimits:
    """The limits of one server process.

    Attributes:
        body_bytes: body of `POST /predict`; 413.
        tensor_bytes: body of an inference request (V2), four times what `pictures` images take as JSON; 413.
        pictures: pictures in one request, or images in one tensor; 413.
        pixels: decoded pixels of one picture; an error for that picture, or 422 if it is the only one.
        total_pixels: decoded pixels of the pictures in one request; an error for each picture beyond.
        body_seconds: from the end of the head to the end of the body; 408.
        waiting: requests that wait for a thread; 503 with Retry-After.
        held_bytes: bodies in memory at once, of all requests (the pictures of a form are copied, which can double it);
            503 with Retry-After.
    """

    body_bytes: int = 32 * 2**20
    tensor_bytes: int = 4 * 2**20
    pictures: int = 64
    pixels: int = 50_000_000  # decoded one at a time above 16 million: at most 0.6 GB, transparency included
    total_pixels: int = 150_000_000
    body_seconds: float = 30
    waiting: int = 512
    held_bytes: int = 256 * 2**20


class RequestQueue:
    """Admit requests up to the limits, and run their work in a bounded pool of threads, never on the event loop.

    Requests are not batched: on a CPU, a batch of these networks takes at least as long per picture as one picture.
    """

    def __init__(self, limits: RequestLimits, *, threads: int) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="serve")
        self._max_admitted = threads + limits.waiting
        self._admitted = 0  # requests with their whole body in memory
        self._held_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request, *, max_bytes: int) -> AsyncIterator[bytes]:
        """Read the body and admit the request; both count against the limits until the block ends.

        Raises:
            HTTPException: 413, 408 or 503.
        """
        self._refuse_if_full()
        content = await self._read(request, max_bytes)
        try:
            self._refuse_if_full()
            self._admitted += 1
            try:
                yield content
            finally:
                self._admitted -= 1
        finally:
            self._held_bytes -= len(content)

    async def _read(self, request: Request, max_bytes: int) -> bytes:
        """Read the body; its bytes then count as held."""
        declared = request.headers.get("content-length")
        if declared is not None and int(declared) > max_bytes:
            raise _too_large(max_bytes)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    self._held_bytes += len(chunk)
                    if size > max_bytes:
                        raise _too_large(max_bytes)
                    if self._held_bytes > self._limits.held_bytes:
                        raise _busy("the requests in progress fill the memory reserved for them")
                    chunks.append(chunk)
        except BaseException as error:
            self._held_bytes -= size
            if isinstance(error, TimeoutError):
                raise _too_slow(self._limits.body_seconds) from error
            raise
        return b"".join(chunks)

    async def run(
        self, work: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        """Run `work` in a thread of the pool, and return its result."""
        return await asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))

    def close(self) -> None:
        """Wait for the work in progress, and end the threads."""
        self._pool.shutdown()

    def _refuse_if_full(self) -> None:
        if self._admitted >= self._max_admitted:
            raise _busy(f"{self._limits.waiting} requests are waiting already")


def refuse_compressed(request: Request) -> None:
    """Raise 415 for a request whose body has a Content-Encoding."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "a body with a Content-Encoding is not accepted; send it as it is")


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body has more than {max_bytes:,} bytes")


def _too_slow(seconds: float) -> HTTPException:
    # The rest of the body may still arrive, so the connection cannot carry another request.
    return HTTPException(408, f"the body did not arrive within {seconds:g} seconds", headers={"connection": "close"})


def _busy(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason}; try again", headers={"retry-after": "1"})
