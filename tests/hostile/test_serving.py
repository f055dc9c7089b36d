"""Requests that are small and cost much: what they may take, and that nothing of them is believed or printed raw."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from starlette.exceptions import HTTPException

from tests.support.hostile import little_memory
from tests.support.onnx_models import saved, tiny_model
from tests.support.serving import Address, picture, read_all, receive, served_model, serving, wait_until
from toolkit.serving.multipart import split_pictures
from toolkit.serving.v2 import parse_request

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with serving(served_model(saved(tmp_path_factory.mktemp("model"), tiny_model()))) as address:
        yield address


SECONDS = 3.0  # of processor time, most of it of the collector of garbage, which the other tests make slow

# Tensors as JSON

TENSORS: dict[str, Callable[[], object]] = {
    "a long text and a million empty ones": lambda: ["x" * 10_000, *[""] * 1_000_000],
    "a text of a million characters": lambda: ["x" * 1_000_000, *[0] * 3_071],
    "a million empty lists": lambda: [[]] * 1_000_000,
    "a row of a million empty lists": lambda: [[[]] * 990_000, *[0] * 3_071],
    "the same row for a picture": lambda: [[[[0] * 3] * 32] * 31 + [[[0] * 100_000] * 32]],
    "numbers of 4,000 digits": lambda: [10**4_000] * 3_072,
    "true": lambda: [True] * 3_072,
    "fractions": lambda: [0.5] * 3_072,
    "not a number": lambda: [float("nan")] * 3_072,
    "an object": lambda: {"0": 0},
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_takes_no_more_than_its_elements(name: str) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": TENSORS[name]()}
    content = json.dumps({"inputs": [tensor]}).encode()
    start = time.thread_time()
    with little_memory(room=2**28), pytest.raises(HTTPException) as caught:
        parse_request(content, None, max_images=64)
    assert time.thread_time() - start < SECONDS
    assert caught.value.status_code == 400
    assert len(caught.value.detail) < 500


# The framing of a body

CHUNKED = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n"
FRAMINGS = {
    "trailers": b"1\r\na\r\n0\r\n" + b"name: value\r\n" * 40_000,
    "one long trailer": b"1\r\na\r\n0\r\nname: " + b"x" * 400_000,
    "an extension of a chunk": b"1;" + b"name=value;" * 40_000,
    "extensions of chunks": (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 400,
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_the_framing_of_a_body_is_limited(server: Address, name: str) -> None:
    with server.connect() as connection, suppress(ConnectionError):
        connection.sendall(CHUNKED + FRAMINGS[name])
        assert read_all(connection) == b""  # closed
    assert_answers(server)


def test_a_body_in_chunks_of_one_byte_is_read(server: Address) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in picture())
    with server.connect() as connection:
        connection.sendall(CHUNKED + chunks + b"0\r\n\r\n")
        assert receive(connection).startswith(b"HTTP/1.1 200 ")


def test_trailers_are_not_headers(server: Address) -> None:
    """The type that the head names is the one that counts."""
    body = b"%x\r\n%s\r\n0\r\ncontent-type: text/html\r\n\r\n" % (len(picture()), picture())
    with server.connect() as connection:
        connection.sendall(CHUNKED + body)
        assert receive(connection).startswith(b"HTTP/1.1 200 ")


SMUGGLED = {
    "two lengths": b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
    "a length and chunks": b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "a length with a sign": b"content-length: +4\r\n\r\nabcd",
    "a blank before the colon": b"content-length : 4\r\n\r\nabcd",
    "a folded header": b"x: a\r\n content-length: 4\r\n\r\nabcd",
    "a chunk longer than numbers are": b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\na",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_body_of_two_meanings_is_400_and_ends_the_connection(server: Address, name: str) -> None:
    with server.connect() as connection:
        second = b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n"
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\n" + SMUGGLED[name] + second)
        content = read_all(connection)
    assert content.startswith(b"HTTP/1.1 400 ")
    assert content.count(b"HTTP/1.1 ") == 1


# Many requests on one connection

GET = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def test_requests_behind_each_other_are_all_answered(server: Address) -> None:
    count = 4_000  # more bytes than a head may have, in few reads
    with server.connect() as connection:
        connection.sendall(GET * count)
        content = b""
        while content.count(b"HTTP/1.1 200 ") < count:
            content += (received := connection.recv(2**20))
            assert received, "the connection was closed"


def test_clients_that_leave_in_the_midst_of_answers_cause_no_traceback(
    server: Address, caplog: pytest.LogCaptureFixture
) -> None:
    for end in (GET[:10], b"\0", CHUNKED + FRAMINGS["trailers"]):
        with server.connect() as connection:
            connection.sendall(GET * 500 + end)
            connection.recv(1)
    assert_answers(server)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# Forms


def test_a_form_of_any_shape_takes_no_time() -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\n'
    for filling in (b"\r\n", b"\r\n--", b"\r", b"\r\n--b", bytes(1)):
        begin = time.thread_time()
        content = start + filling * (8_000_000 // len(filling)) + b"\r\n--b--\r\n"
        try:
            split_pictures(content, "multipart/form-data; boundary=b", max_pictures=64)
        except HTTPException as error:
            assert error.status_code in (400, 413)
        assert time.thread_time() - begin < 1, filling


# What a response and the log take from a request


def test_no_response_leads_to_the_host_that_a_client_named(server: Address) -> None:
    for path in (b"/predict/", b"/v2/", b"//evil.example/", b"/v2/models/cifar/"):
        with server.connect() as connection:
            connection.sendall(b"GET %s HTTP/1.1\r\nhost: evil.example\r\n\r\n" % path)
            response = receive(connection)
        assert response.startswith(b"HTTP/1.1 404 "), path
        assert b"evil" not in response


def test_paths_and_names_are_logged_and_answered_as_ascii_in_one_line(server: Address) -> None:
    name = b"%1b%5b2J%0d%0a%e2%80%ae%ff" + b"x" * 5_000
    with server.connect() as connection:
        connection.sendall(b"GET /v2/models/%s HTTP/1.1\r\nhost: x\r\n\r\n" % name)
        response = receive(connection)
    wait_until(lambda: any("u202e" in line for line in server.log))
    (line,) = [line for line in server.log if "u202e" in line]
    body = response.partition(b"\r\n\r\n")[2].decode("ascii")
    for text in (line.removesuffix("\n"), body):
        assert text.isprintable()
        assert text.isascii()
        assert len(text) < 2_000
    assert json.loads(body)["error"].startswith(r"there is no model '\x1b[2J\r\n\u202e")


def test_paths_made_up_by_clients_share_one_metric(server: Address) -> None:
    for number in range(20):
        with server.connect() as connection:
            connection.sendall(b"GET /made-up-%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
            receive(connection)
    with server.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        text = receive(connection).decode()
    assert "made-up" not in text
    assert sum(line.startswith('cifar_requests_total{endpoint="none",status="404"}') for line in text.splitlines()) == 1


def assert_answers(server: Address) -> None:
    with server.connect() as connection:
        connection.sendall(GET)
        assert receive(connection).startswith(b"HTTP/1.1 200 ")
