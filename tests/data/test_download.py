"""Downloads from a local server that truncates, stalls, corrupts, redirects and ignores ranges."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.data import cifar
from toolkit.data.cifar import CIFAR100
from toolkit.data.dataset import check_data, find_data
from toolkit.data.download import Archive, DownloadLimits, check_files, fetch
from toolkit.errors import ToolkitError

FOLDER = "batches"
FILES = {name: np.random.default_rng(seed).bytes(50_000) for seed, name in enumerate(["one", "two"])}
LIMITS = DownloadLimits(timeout_seconds=0.5, min_rate=0.0, window_seconds=0.25, connections=3)


def tarball() -> bytes:
    """The two files, and members that must not be unpacked."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in [f"{FOLDER}/one", f"{FOLDER}/more", "../outside", f"{FOLDER}/two"]:
            data = FILES.get(Path(name).name, b"not wanted")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo(f"{FOLDER}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        tar.addfile(link)
    return packed.getvalue()


BODY = tarball()
SIZE = len(BODY)


class Handler(BaseHTTPRequestHandler):
    """Answers a path with the function of that name in `Server.answers`."""

    server: "Server"

    def do_GET(self) -> None:
        range_header = self.headers.get("Range")
        self.start = int(range_header.removeprefix("bytes=").removesuffix("-")) if range_header else 0
        self.server.requests.append((self.path, self.start))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client closed the connection
            self.server.answers[self.path](self)

    def head(self, *, start: int | None = None, size: int = SIZE) -> None:
        """Status line and headers for the bytes from `start` (by default as requested) to the end."""
        start = self.start if start is None else start
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, int]] = []  # path, first requested byte
        self.released = threading.Event()

    def archive(self, **answers: Callable[[Handler], None]) -> Archive:
        """An archive with one source for each answer, in this order."""
        self.answers = {f"/{name}": answer for name, answer in answers.items()}
        urls = tuple(f"http://127.0.0.1:{self.server_port}{path}" for path in self.answers)
        md5s = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}
        return Archive(urls=urls, md5=hashlib.md5(BODY).hexdigest(), size=SIZE, folder=FOLDER, files=md5s)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


# Answers


def good(handler: Handler) -> None:
    handler.head()
    handler.wfile.write(BODY[handler.start :])


def ignores_range(handler: Handler) -> None:
    handler.head(start=0)
    handler.wfile.write(BODY)


def truncates(handler: Handler) -> None:
    """Closes the connection after 40,000 bytes, whatever the headers announced."""
    handler.head()
    handler.wfile.write(BODY[handler.start :][:40_000])


def stalls(handler: Handler) -> None:
    """Sends a part, then keeps the connection open."""
    truncates(handler)
    handler.server.released.wait(10)


def pauses(handler: Handler) -> None:
    """Sends a part, and the rest when the test releases it."""
    handler.head()
    handler.wfile.write(BODY[handler.start :][:40_000])
    handler.server.released.wait(60)
    handler.wfile.write(BODY[handler.start :][40_000:])


def slow(handler: Handler) -> None:
    """About 100 kB a second."""
    handler.head()
    for start in range(handler.start, SIZE, 2_000):
        handler.wfile.write(BODY[start : start + 2_000])
        time.sleep(0.02)


def corrupts(handler: Handler) -> None:
    handler.head()
    handler.wfile.write((BODY[:70_000] + bytes(10) + BODY[70_010:])[handler.start :])


def never_ends(handler: Handler) -> None:
    """Announces no length, and sends more than the archive."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.released.is_set():
        handler.wfile.write(bytes(10_000))


def other_file(handler: Handler) -> None:
    handler.head(start=0, size=SIZE + 1)


def other_range(handler: Handler) -> None:
    handler.head(start=handler.start + 1 if handler.start else 0)
    handler.wfile.write(BODY[handler.start + 1 :])


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_error(code)


def redirects(target: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    return answer


def refuses_range(handler: Handler) -> None:
    handler.send_error(416) if handler.start else good(handler)


# Helpers


def assert_whole(folder: Path) -> None:
    """The folder holds the two files and the lock, nothing else."""
    assert {path.name for path in folder.iterdir()} == {FOLDER, f".{FOLDER}.lock"}
    assert {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()} == FILES


def partial_of(folder: Path) -> Path:
    return folder / f".{FOLDER}.tar.gz.partial"


def fetching_process(archive: Archive, folder: Path) -> "subprocess.Popen[str]":
    """Start a process that downloads the archive and prints its progress."""
    program = (
        "import json, sys; from pathlib import Path; from toolkit.data.download import Archive, DownloadLimits, fetch\n"
        "fetch(Archive(**json.loads(sys.argv[1])), Path(sys.argv[2]), limits=DownloadLimits(timeout_seconds=60),"
        " progress=lambda what, done, total: print(what, done, flush=True))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(asdict(archive)), str(folder)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


# CIFAR-100


def cifar100_archive() -> tuple[bytes, dict[str, bytes]]:
    """An archive in the form of CIFAR-100's with twelve training and six test images, and the files in it."""

    def batch(count: int, seed: int) -> dict[str, Any]:
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "fine_labels": [17 * i % 100 for i in range(count)], "coarse_labels": [0] * count}

    meta = {"fine_label_names": list(CIFAR100.class_names), "coarse_label_names": ["x"] * 20}
    contents = {"train": batch(12, 0), "test": batch(6, 1), "meta": meta}
    files = {name: pickle.dumps(content, protocol=4) for name, content in contents.items()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue(), files


def test_cifar100_is_downloaded_and_read(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, files = cifar100_archive()

    def answer(handler: Handler) -> None:
        handler.head(size=len(body))
        handler.wfile.write(body)

    md5s = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    archive = replace(
        server.archive(answer=answer),
        md5=hashlib.md5(body).hexdigest(),
        size=len(body),
        folder="cifar-100-python",
        files=md5s,
    )
    monkeypatch.setitem(cifar.BY_NAME, "cifar100", replace(CIFAR100, archive=archive))
    source = find_data("cifar100")
    assert (source.name, source.folder, source.class_names) == ("cifar100", cache, CIFAR100.class_names)
    train, test = source.train(), source.test()
    assert train.images.shape == (12, 3, 32, 32)
    assert train.labels.tolist() == [17 * i % 100 for i in range(12)]
    assert len(test) == 6
    assert find_data(str(cache / "cifar-100-python")).name == "cifar100"
    assert check_data("cifar100").complete


# Tests


def test_fetches_into_a_new_folder_and_reports_progress(server: Server, tmp_path: Path) -> None:
    archive, calls = server.archive(good=good), []
    folder = tmp_path / "a" / "b"
    fetch(archive, folder, limits=LIMITS, progress=lambda *values: calls.append(values))
    assert_whole(folder)
    assert not (tmp_path / "a" / "outside").exists()
    assert set(check_files(archive, folder).values()) == {"ok"}
    done = [bytes_done for _, bytes_done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == SIZE
    assert {total for _, _, total in calls} == {SIZE}
    assert calls[0][0] == f"127.0.0.1:{server.server_port}"


def test_complete_files_are_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    archive = server.archive(good=good)
    fetch(archive, tmp_path, limits=LIMITS)
    fetch(archive, tmp_path, limits=LIMITS)
    assert server.requests == [("/good", 0)]


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    fetch(server.archive(truncates=truncates), tmp_path, limits=LIMITS)
    assert_whole(tmp_path)
    assert server.requests == [("/truncates", 0), ("/truncates", 40_000), ("/truncates", 80_000)]


def test_a_source_that_keeps_closing_is_left_and_its_bytes_are_kept(server: Server, tmp_path: Path) -> None:
    fetch(server.archive(truncates=truncates, good=good), tmp_path, limits=replace(LIMITS, connections=2))
    assert_whole(tmp_path)
    assert server.requests[-1] == ("/good", 80_000)


@pytest.mark.parametrize("bad", [stalls, slow])
def test_a_stalled_or_slow_source_is_left_and_its_bytes_are_kept(
    server: Server, tmp_path: Path, bad: Callable[[Handler], None]
) -> None:
    fetch(server.archive(bad=bad, good=good), tmp_path, limits=replace(LIMITS, min_rate=400_000))
    assert_whole(tmp_path)
    assert [path for path, _ in server.requests] == ["/bad", "/good"]
    assert server.requests[-1][1] > 0


def test_a_slow_source_is_used_when_all_others_fail(server: Server, tmp_path: Path) -> None:
    fetch(server.archive(slow=slow, gone=status(404)), tmp_path, limits=replace(LIMITS, min_rate=400_000))
    assert_whole(tmp_path)
    assert [path for path, _ in server.requests] == ["/slow", "/gone", "/slow"]


@pytest.mark.parametrize(
    "bad", [status(404), status(503), corrupts, never_ends, other_file, status(204), redirects("ftp://127.0.0.1/x")]
)
def test_other_contents_are_discarded(server: Server, tmp_path: Path, bad: Callable[[Handler], None]) -> None:
    fetch(server.archive(bad=bad, good=good), tmp_path, limits=LIMITS)
    assert_whole(tmp_path)
    assert server.requests == [("/bad", 0), ("/good", 0)]


def test_redirections_are_followed_with_the_range(server: Server, tmp_path: Path) -> None:
    partial_of(tmp_path).write_bytes(BODY[:1_000])
    archive = server.archive(moved=redirects("/good"), good=good)
    fetch(replace(archive, urls=archive.urls[:1]), tmp_path, limits=LIMITS)
    assert_whole(tmp_path)
    assert server.requests == [("/moved", 1_000), ("/good", 1_000)]


@pytest.mark.parametrize("answer", [ignores_range, refuses_range])
def test_starts_over_where_ranges_are_not_served(
    server: Server, tmp_path: Path, answer: Callable[[Handler], None]
) -> None:
    partial_of(tmp_path).write_bytes(BODY[:1_000])
    fetch(server.archive(answer=answer), tmp_path, limits=LIMITS)
    assert_whole(tmp_path)


def test_another_range_than_requested_is_refused(server: Server, tmp_path: Path) -> None:
    partial_of(tmp_path).write_bytes(BODY[:1_000])
    fetch(server.archive(other_range=other_range, good=good), tmp_path, limits=LIMITS)
    assert_whole(tmp_path)


@pytest.mark.parametrize("stale", [bytes(1_000), bytes(SIZE), bytes(SIZE + 1)], ids=["short", "full", "too long"])
def test_wrong_bytes_of_an_earlier_download_are_replaced(server: Server, tmp_path: Path, stale: bytes) -> None:
    partial_of(tmp_path).write_bytes(stale)
    fetch(server.archive(good=good), tmp_path, limits=LIMITS)
    assert_whole(tmp_path)
    assert server.requests[-1] == ("/good", 0)


def test_a_full_partial_needs_no_server(tmp_path: Path, server: Server) -> None:
    partial_of(tmp_path).write_bytes(BODY)
    fetch(server.archive(good=good), tmp_path, limits=LIMITS)
    assert_whole(tmp_path)
    assert server.requests == []


def test_damaged_and_missing_files_are_replaced_and_others_left_alone(server: Server, tmp_path: Path) -> None:
    archive = server.archive(good=good)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "one").write_bytes(b"damaged")
    (tmp_path / FOLDER / "notes.txt").write_text("the user's own")
    assert check_files(archive, tmp_path) == {"one": "damaged", "two": "missing"}
    fetch(archive, tmp_path, limits=LIMITS)
    assert set(check_files(archive, tmp_path).values()) == {"ok"}
    assert (tmp_path / FOLDER / "notes.txt").read_text() == "the user's own"


def test_when_every_source_fails_one_line_names_each_with_its_reason(server: Server, tmp_path: Path) -> None:
    archive = server.archive(gone=status(404), stalls=stalls, corrupts=corrupts, truncates=truncates)
    archive = replace(archive, urls=("http://127.0.0.1:9/", *archive.urls))
    with pytest.raises(ToolkitError) as failed:
        fetch(archive, tmp_path, limits=replace(LIMITS, connections=1))
    message = str(failed.value)
    for url in archive.urls:
        assert url in message
    for reason in ["cannot be reached", "HTTP status 404", "sent no data for 0.5 seconds", "another MD5", "closed the"]:
        assert reason in message
    assert message.isprintable()
    assert not (tmp_path / FOLDER).exists()


def test_an_archive_without_a_file_is_refused(server: Server, tmp_path: Path) -> None:
    archive = server.archive(good=good)
    with pytest.raises(ToolkitError, match=r"lacks files.*'three': 'missing'"):
        fetch(replace(archive, files={**archive.files, "three": "0" * 32}), tmp_path, limits=LIMITS)
    assert not (tmp_path / FOLDER).exists()


def test_an_error_names_the_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match=r"cannot write .*file"):
        fetch(server.archive(good=good), tmp_path / "file" / "folder", limits=LIMITS)


def test_two_concurrent_processes_download_once(server: Server, tmp_path: Path) -> None:
    archive = server.archive(pauses=pauses)
    with fetching_process(archive, tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("127.0.0.1")
        with fetching_process(archive, tmp_path) as second:
            assert second.stdout is not None
            assert second.stdout.readline().startswith("waiting for another process")
            server.released.set()
            assert second.wait(60) == 0
        assert first.wait(60) == 0
    assert_whole(tmp_path)
    assert server.requests == [("/pauses", 0)]


def test_the_partial_download_of_a_killed_process_is_resumed(server: Server, tmp_path: Path) -> None:
    archive = server.archive(pauses=pauses)
    with fetching_process(archive, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("127.0.0.1")
        process.kill()
    assert not (tmp_path / FOLDER).exists()
    left = partial_of(tmp_path).stat().st_size
    server.released.set()
    fetch(archive, tmp_path, limits=LIMITS)
    assert_whole(tmp_path)
    assert left > 0
    assert server.requests[1:] == [("/pauses", left)]
