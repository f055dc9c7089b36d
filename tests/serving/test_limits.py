"""Every limit of the server, with the status of a request beyond it; the server answers others afterwards."""

import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.serving import Address, picture, read_all, receive, serving, wait_until
from toolkit.inference import Failure, Prediction
from toolkit.serving.limits import RequestLimits
from toolkit.serving.model import Picture, ServedModel
from toolkit.serving.protocol import GuardedProtocol

PNG = {"content-type": "image/png"}
LIMITS = RequestLimits(
    body_bytes=100_000,
    tensor_bytes=50_000,
    pictures=3,
    pixels=10_000,
    total_pixels=25_000,
    body_seconds=0.5,
    waiting=1,
    held_bytes=250_000,
)


class HastyProtocol(GuardedProtocol):
    head_seconds = 0.5
    linger_seconds = 0.5


@pytest.fixture(scope="module")
def small(model: ServedModel) -> Iterator[Address]:
    """A server with small limits."""
    with serving(model, limits=LIMITS, protocol=HastyProtocol) as address:
        yield address


def head(*, path: str = "/predict", length: int | None = None, extra: str = "") -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n{size}\r\n{extra}\r\n".encode()


def exchange(address: Address, *parts: bytes) -> bytes:
    """Send the parts, then return what comes until the server closes the connection."""
    with address.connect() as connection:
        for part in parts:
            connection.sendall(part)
        return read_all(connection)


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def error_of(response: bytes) -> str:
    error: str = json.loads(response.partition(b"\r\n\r\n")[2])["error"]
    return error


# Size of the body: 413.


def test_a_body_that_declares_too_much_is_413_before_any_of_it_is_read(small: Address) -> None:
    for path, limit in [("/predict", "100,000"), ("/v2/models/cifar/infer", "50,000")]:
        response = exchange(small, head(path=path, length=10**12))
        assert status_of(response) == 413
        assert error_of(response) == f"the body has more than {limit} bytes"


def test_a_chunked_body_is_413_once_it_exceeds_the_limit(small: Address) -> None:
    chunk = b"%x\r\n%s\r\n" % (60_000, bytes(60_000))
    response = exchange(small, head(), chunk, chunk)
    assert status_of(response) == 413
    assert error_of(response) == "the body has more than 100,000 bytes"


def test_a_client_that_sends_its_whole_body_first_reads_413(small: Address) -> None:
    response = httpx.post(f"{small.url}/predict", content=bytes(2_000_000), headers=PNG)
    assert response.status_code == 413


def test_what_follows_a_413_takes_no_memory(small: Address) -> None:
    with small.connect() as connection:
        before = resident_bytes()
        connection.sendall(head(length=10**12))
        sent, deadline = 0, time.monotonic() + 10
        with pytest.raises(OSError):  # noqa: PT011 (reset or broken pipe: the server has closed the connection)
            while time.monotonic() < deadline:
                sent += connection.send(bytes(2**20))
        assert sent > 20_000_000
        assert resident_bytes() - before < 20_000_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_body_of_just_the_limit_is_accepted(small: Address) -> None:
    content = picture() + bytes(100_000 - len(picture()))
    assert httpx.post(f"{small.url}/predict", content=content, headers=PNG).status_code == 200
    assert httpx.post(f"{small.url}/predict", content=content + b"x", headers=PNG).status_code == 413


# Number and size of the pictures: 413 and 422.


def test_more_pictures_than_allowed_are_413(small: Address) -> None:
    form = [("p", picture())]
    assert httpx.post(f"{small.url}/predict", files=form * 3).status_code == 200
    response = httpx.post(f"{small.url}/predict", files=form * 4)
    assert response.status_code == 413
    assert response.json() == {"error": "a request may hold at most 3 pictures"}


def test_a_picture_with_more_pixels_than_allowed_is_422(small: Address) -> None:
    at_limit, beyond = picture(size=(100, 100)), picture(size=(101, 100))
    assert httpx.post(f"{small.url}/predict", content=at_limit, headers=PNG).status_code == 200
    response = httpx.post(f"{small.url}/predict", content=beyond, headers=PNG)
    assert response.status_code == 422
    assert response.json() == [{"path": "", "error": "the picture: 101 x 100 pixels; the limit is 10,000"}]
    response = httpx.post(f"{small.url}/predict", files=[("p", ("a", at_limit)), ("p", ("b", beyond))])
    assert response.status_code == 200
    assert [set(result) & {"label", "error"} for result in response.json()] == [{"label"}, {"error"}]


def test_pictures_with_more_pixels_in_total_than_allowed_are_an_error_each(small: Address) -> None:
    large, medium = picture(size=(100, 100)), picture(size=(50, 100))
    form = [("p", (name, content)) for name, content in (("a", large), ("b", large), ("c", medium))]
    assert [set(result) & {"label", "error"} for result in post_form(small, form)] == [{"label"}] * 3
    form[2] = ("p", ("c", picture(size=(51, 100))))
    results = post_form(small, form)
    assert [set(result) & {"label", "error"} for result in results] == [{"label"}, {"label"}, {"error"}]
    assert results[2] == {
        "path": "c",
        "error": "c: the pictures of this request have more than 25,000 pixels in total, the limit; "
        "send this one in another request",
    }


def post_form(address: Address, form: list[tuple[str, tuple[str, bytes]]]) -> list[dict[str, object]]:
    response = httpx.post(f"{address.url}/predict", files=form)
    assert response.status_code == 200
    return response.json()  # type: ignore[no-any-return]


def chunk_of_png(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims so many pixels, and holds zeros for a part of them."""
    header = chunk_of_png(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk_of_png(b"IDAT", zlib.compress(bytes(2**24), 9))
        + chunk_of_png(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG with a compressed comment of 64 MiB."""
    comment = chunk_of_png(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))
    whole = picture()
    return whole[:33] + comment + whole[33:]  # after the signature and IHDR


@pytest.mark.hostile
@pytest.mark.parametrize("bomb", [png_bomb(60_000, 60_000), png_bomb(8000, 8000), png_bomb(2**31 - 1, 1), text_bomb()])
def test_bombs_are_422(server: Address, bomb: bytes) -> None:
    assert len(bomb) < 100_000
    response = httpx.post(f"{server.url}/predict", content=bomb, headers=PNG, timeout=30)
    assert response.status_code == 422, response.text


# Time: 408.


def trickle(connection: socket.socket, byte: bytes) -> bytes:
    """Send a byte every tenth of a second until the server answers; return its answer."""
    connection.settimeout(0.1)
    for _ in range(100):
        connection.sendall(byte)
        with contextlib.suppress(TimeoutError):
            connection.recv(1, socket.MSG_PEEK)
            connection.settimeout(20)
            return receive(connection)
    raise AssertionError("the server waits forever")


def test_a_body_that_comes_byte_by_byte_is_408(small: Address) -> None:
    with small.connect() as connection:
        connection.sendall(head(length=90_000))
        response = trickle(connection, b"x")
    assert status_of(response) == 408
    assert error_of(response) == "the body did not arrive within 0.5 seconds"
    assert b"\r\nconnection: close\r\n" in response
    wait_until(lambda: small.log and small.last_entry()["status"] == 408)


def test_a_head_that_comes_byte_by_byte_is_408(small: Address) -> None:
    with small.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nx: ")
        response = trickle(connection, b"x")
    assert status_of(response) == 408
    assert error_of(response) == "the head of the request did not arrive within 0.5 seconds"


def test_a_slow_head_after_an_answered_request_is_408(small: Address) -> None:
    with small.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert status_of(receive(connection)) == 200
        connection.sendall(b"GET ")
        assert status_of(read_all(connection)) == 408


def test_a_connection_that_sends_nothing_is_closed(small: Address) -> None:
    begin = time.monotonic()
    assert exchange(small) == b""
    assert 0.4 < time.monotonic() - begin < 10


def test_a_head_of_any_size_is_431(small: Address) -> None:
    response = exchange(small, b"GET / HTTP/1.1\r\nx: " + bytes([120]) * 400_000)
    assert status_of(response) == 431
    assert error_of(response) == "the head of the request has more than 65,536 bytes"


# Waiting requests and memory: 503.


class HeldModel(ServedModel):
    """Answers once it is allowed to."""

    go = threading.Event()

    def predict(self, picture: Picture, *, top: int, max_pixels: int) -> Prediction | Failure:
        assert self.go.wait(20)
        return super().predict(picture, top=top, max_pixels=max_pixels)


def test_more_waiting_requests_than_allowed_are_503_with_retry_after(model: ServedModel) -> None:
    held = HeldModel(model.session, model.sha256)
    held.go.clear()
    statuses: list[int] = []

    def post(url: str) -> None:
        statuses.append(httpx.post(f"{url}/predict", content=picture(), headers=PNG, timeout=20).status_code)

    with serving(held, limits=LIMITS, threads=2) as server:  # two run, one waits
        threads = [threading.Thread(target=post, args=(server.url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        response = refused(server)
        assert response.headers["retry-after"] == "1"
        assert response.json() == {"error": "1 requests are waiting already; try again"}
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        held.go.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200, 200]
        assert httpx.post(f"{server.url}/predict", content=picture(), headers=PNG).status_code == 200


def refused(server: Address) -> httpx.Response:
    """The first 503; before, the requests that fill the server are still on their way."""
    for _ in range(1000):
        response = httpx.post(f"{server.url}/predict", content=bytes(100_001), headers=PNG)
        if response.status_code == 503:
            return response
        assert response.status_code == 413
        time.sleep(0.01)
    raise AssertionError("nothing was refused")


def test_bodies_that_fill_the_memory_set_aside_are_503_with_retry_after(model: ServedModel) -> None:
    limits = RequestLimits(body_bytes=100_000, held_bytes=250_000, body_seconds=20)
    with serving(model, limits=limits) as server:
        half_sent = [server.connect() for _ in range(3)]
        for connection in half_sent[:2]:
            connection.sendall(head(length=100_000) + bytes(99_999))
        time.sleep(0.3)
        half_sent[2].sendall(head(length=100_000) + bytes(99_999))
        response = receive(half_sent[2])
        assert status_of(response) == 503
        assert b"\r\nretry-after: 1\r\n" in response
        half_sent[0].sendall(b"\0")  # which is no picture, and leaves room
        assert status_of(receive(half_sent[0])) == 422
        assert httpx.post(f"{server.url}/predict", content=picture(), headers=PNG).status_code == 200
        for connection in half_sent:
            connection.close()
        wait_until(lambda: any(json.loads(line)["status"] == 499 for line in server.log))


def test_clients_that_leave_do_not_count_any_longer(small: Address) -> None:
    for _ in range(20):
        with small.connect() as connection:
            connection.sendall(head(length=90_000) + bytes(50_000))
    wait_until(lambda: httpx.post(f"{small.url}/predict", content=picture(), headers=PNG).status_code == 200)


def test_a_request_with_expect_continue_is_refused_before_its_body(small: Address) -> None:
    response = exchange(small, head(length=10**6, extra="expect: 100-continue\r\n"))
    assert response.startswith(b"HTTP/1.1 413 ")
    small_body = picture()
    with small.connect() as connection:
        connection.sendall(head(length=len(small_body), extra="expect: 100-continue\r\n"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(small_body)
        assert status_of(receive(connection)) == 200


def test_forms_with_any_bytes_in_the_pictures(server: Address) -> None:
    """The parts are separated by the boundary alone, whatever the pictures hold."""
    file = io.BytesIO(picture() + b"\r\n--\r\n\n\r--x" * 1000)
    assert httpx.post(f"{server.url}/predict", files=[("p", file)]).status_code == 200
