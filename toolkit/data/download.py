"""Download an archive: resume a partial download, verify the MD5, unpack, and place the files atomically.

When several processes request the same archive, one downloads it and the others wait for it.
"""

import hashlib
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from toolkit.errors import ToolkitError
from toolkit.reporting import ignore

CHUNK = 1 << 16  # bytes

# Called with the current activity (the host, or a reason to wait), the bytes received, and the size of the archive.
DownloadProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """A gzipped tar file with one folder, published at several byte-identical sources.

    Attributes:
        urls: the sources, http or https, in the order of preference.
        md5: the archive's checksum, in hexadecimal.
        size: in bytes.
        folder: the folder in the archive.
        files: the names of the files to unpack from that folder, each with its MD5.
    """

    urls: tuple[str, ...]
    md5: str
    size: int
    folder: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class DownloadLimits:
    """When to give up on a source and try the next one.

    Attributes:
        timeout_seconds: for the connection, and for each block of data.
        min_rate: bytes per second, averaged over `window_seconds`.
        window_seconds: the period over which the rate is averaged.
        connections: the maximum number of connections to a source per attempt.
    """

    timeout_seconds: float = 20.0
    min_rate: float = 50_000.0
    window_seconds: float = 20.0
    connections: int = 5


DEFAULT_LIMITS = DownloadLimits()


class _SourceFailed(Exception):
    """The source did not deliver the archive; the message gives the reason."""


class _TooSlow(_SourceFailed):
    """The source delivers less than `DownloadLimits.min_rate`; the bytes received so far are kept."""


def fetch(
    archive: Archive, folder: Path, *, limits: DownloadLimits = DEFAULT_LIMITS, progress: DownloadProgress = ignore
) -> None:
    """Download and unpack an archive to `folder/<archive.folder>`, unless all files are there.

    An interrupted call leaves at most a partial download in `folder`, which the next call resumes.

    Raises:
        ToolkitError: every source failed (the message gives the reason for each), or the folder is not writable.
    """
    if _is_complete(archive, folder):  # before the lock: the folder may be read-only
        return
    partial = folder / f".{archive.folder}.tar.gz.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f".{archive.folder}.lock", archive, progress):
            if _is_complete(archive, folder):  # another process held the lock and downloaded it
                return
            _download(archive, partial, limits, progress)
            progress("unpacking", archive.size, archive.size)
            _unpack(archive, partial, folder)
            partial.unlink()
    except OSError as error:
        raise ToolkitError(f"cannot write {folder}: {error.strerror or error}") from error


def check_files(archive: Archive, folder: Path) -> dict[str, str]:
    """The state of each of the archive's files: "ok", "damaged" (another MD5), "missing" or "unreadable"."""
    return {name: _state(folder / archive.folder / name, md5) for name, md5 in archive.files.items()}


def _state(path: Path, md5: str) -> str:
    try:
        return "ok" if _md5(path) == md5 else "damaged"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unreadable"


def _lock(path: Path, archive: Archive, progress: DownloadProgress) -> AbstractContextManager[object]:
    """Acquire a lock between processes; the operating system releases it when the process ends."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that downloads to this folder", 0, archive.size)
        return lock.acquire()


def _download(archive: Archive, partial: Path, limits: DownloadLimits, progress: DownloadProgress) -> None:
    """Download the archive to `partial` from the first source that delivers it with the right MD5."""
    failures = []
    slow = replace(limits, min_rate=limits.min_rate / 10)
    waiting = deque((url, limits) for url in archive.urls)
    while waiting:
        url, pace = waiting.popleft()
        resumed = partial.exists()
        try:
            _fill(archive, partial, url, pace, progress)
            if _md5(partial) == archive.md5:
                return
            partial.unlink()
            if resumed:  # the bytes from before may be the wrong ones: try the source once more from the start
                waiting.appendleft((url, pace))
            raise _SourceFailed(f"delivered a file with another MD5 than {archive.md5}")
        except _TooSlow as failure:
            failures.append(f"{url} {failure}")
            if pace != slow:  # try it again at the end, with a lower limit
                waiting.append((url, slow))
        except _SourceFailed as failure:
            failures.append(f"{url} {failure}")
    raise ToolkitError(f"cannot download {archive.folder}: {'; '.join(failures)}")


def _fill(archive: Archive, partial: Path, url: str, limits: DownloadLimits, progress: DownloadProgress) -> None:
    """Append to `partial` until it has the size of the archive, over several connections if necessary."""
    if _length(partial) > archive.size:
        partial.unlink()
    for _ in range(limits.connections):
        if _length(partial) == archive.size:
            return
        with _connect(archive, partial, url, limits) as response, partial.open("ab") as file:
            if response.status != 206:
                file.truncate(0)  # the server sends the whole archive
            _copy(response, file, archive.size, url, limits, progress)
    if (length := _length(partial)) < archive.size:
        raise _SourceFailed(
            f"closed the connection {limits.connections} times, last after {length:,} of {archive.size:,} bytes"
        )


def _connect(archive: Archive, partial: Path, url: str, limits: DownloadLimits) -> HTTPResponse:
    """Request the bytes that `partial` lacks; the server may send the whole archive instead (status 200)."""
    start = _length(partial)
    request = urllib.request.Request(url, headers={"User-Agent": "cifar"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        opener = urllib.request.build_opener(_WebOnly)
        response: HTTPResponse = opener.open(request, timeout=limits.timeout_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # Range Not Satisfiable: start over
            partial.unlink()
            return _connect(archive, partial, url, limits)
        raise _SourceFailed(f"answered with HTTP status {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _SourceFailed(f"cannot be reached ({getattr(error, 'reason', None) or error})") from error
    if (offer := _offer(response)) not in (f"bytes {start}-{archive.size - 1}/{archive.size}", str(archive.size), ""):
        response.close()
        raise _SourceFailed(f"offers another file ({offer}, expected {archive.size} bytes)")
    return response


def _offer(response: HTTPResponse) -> str:
    """Return the range or the length that the server announces, or ""."""
    if response.status == 206:
        return response.headers.get("Content-Range") or "an unnamed range"
    if response.status == 200:
        return response.headers.get("Content-Length") or ""
    return f"HTTP status {response.status}"


def _copy(
    response: HTTPResponse, file: IO[bytes], size: int, url: str, limits: DownloadLimits, progress: DownloadProgress
) -> None:
    """Append the response to `file`, until it has `size` bytes or the connection breaks.

    Raises:
        _SourceFailed: no data arrived for `limits.timeout_seconds`.
        _TooSlow: the rate was below `limits.min_rate`.
    """
    host = urlsplit(url).netloc
    length = file.seek(0, os.SEEK_END)
    window_start, window_length = time.monotonic(), length
    while length < size:
        if (seconds := time.monotonic() - window_start) >= limits.window_seconds:
            if (rate := (length - window_length) / seconds) < limits.min_rate:
                raise _TooSlow(f"is too slow ({rate / 1000:.1f} kB/s)")
            window_start, window_length = time.monotonic(), length
        try:
            data = response.read1(min(CHUNK, size - length))  # does not wait for a full chunk: detects a slow source
        except TimeoutError as error:
            raise _SourceFailed(f"sent no data for {limits.timeout_seconds:g} seconds") from error
        except (OSError, HTTPException):
            return
        if not data:
            return
        length += file.write(data)
        file.flush()  # kept even if the process is killed
        progress(host, length, size)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirections to http and https only; the standard handler also follows them to ftp."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Unpack the archive's files into `folder/<archive.folder>`, by one rename where that folder does not exist.

    Only the files named by `archive` are written; links, devices and paths outside the folder are ignored.
    """
    place, unpacked = folder / archive.folder, folder / f".{archive.folder}.unpacking"
    shutil.rmtree(unpacked, ignore_errors=True)  # left by a killed process
    (unpacked / archive.folder).mkdir(parents=True)
    try:
        wanted = {f"{archive.folder}/{name}" for name in archive.files}
        with tarfile.open(path, mode="r|gz") as tar:
            for member in tar:
                if member.name in wanted and member.isfile() and (source := tar.extractfile(member)):
                    with source, (unpacked / member.name).open("wb") as file:
                        shutil.copyfileobj(source, file)
        if not _is_complete(archive, unpacked):
            raise ToolkitError(f"the archive lacks files or has damaged ones: {check_files(archive, unpacked)}")
        if not place.exists():
            (unpacked / archive.folder).rename(place)
        else:  # some of its files are damaged or missing
            for name in archive.files:
                (unpacked / archive.folder / name).replace(place / name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _is_complete(archive: Archive, folder: Path) -> bool:
    return all(state == "ok" for state in check_files(archive, folder).values())


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
