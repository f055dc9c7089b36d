"""Download one archive, whole or not at all: resumed, checked, unpacked and put in place in one step.

Several processes may ask for the same archive at once: one fetches it, the others wait and find it there.
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

CHUNK = 1 << 16  # bytes

# Told what is going on (the host that sends, or why nothing comes yet), the bytes that are there, and the bytes in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """A gzipped tar file that holds one folder, published in several places, byte for byte the same.

    Attributes:
        urls: where it is, http or https; the first is tried first.
        md5: its checksum.
        size: its length in bytes.
        folder: the folder in it.
        files: the names of the files in that folder that are wanted, each with its MD5; nothing else is unpacked.
    """

    urls: tuple[str, ...]
    md5: str
    size: int
    folder: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Patience:
    """How long a source may take before the next one is tried.

    Attributes:
        timeout_seconds: for a connection to be made, and then for each next piece of data.
        min_rate: bytes per second, averaged over `window_seconds`, below which a source crawls.
        connections: how often one source is connected to, when it breaks off in the middle.
    """

    timeout_seconds: float = 20.0
    min_rate: float = 50_000.0
    window_seconds: float = 20.0
    connections: int = 5


class _SourceFailed(Exception):
    """This source cannot deliver the archive; the message says why."""


class _TooSlow(_SourceFailed):
    """This source delivers less than `Patience.min_rate`; what has come so far is good."""


def fetch(
    archive: Archive, folder: Path, *, patience: Patience | None = None, progress: Progress | None = None
) -> None:
    """Make `folder/<archive.folder>` hold the archive's files; nothing is downloaded where it holds them already.

    Interrupted at any moment, it leaves at most a partial download beside the place, which the next call continues.

    Raises:
        ToolkitError: every source failed (the message says how each did), or the folder cannot be written.
    """
    if _complete(archive, folder):  # also where the folder can only be read
        return
    patience = patience or Patience()
    progress = progress or (lambda what, done, total: None)
    partial = folder / f".{archive.folder}.tar.gz.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{archive.folder}.lock", archive, progress):
            if _complete(archive, folder):  # since the look above: by the process that held the lock
                return
            _download(archive, partial, patience, progress)
            progress("unpacking", archive.size, archive.size)
            _unpack(archive, partial, folder)
            partial.unlink()
    except OSError as error:
        raise ToolkitError(f"cannot write {folder}: {error.strerror or error}") from error


def state_of_files(archive: Archive, folder: Path) -> dict[str, str]:
    """Files that `folder/<archive.folder>` should hold: "ok", "damaged" (another MD5), "missing", or "unreadable"."""
    return {name: _state(folder / archive.folder / name, md5) for name, md5 in archive.files.items()}


def _state(path: Path, md5: str) -> str:
    try:
        return "ok" if _md5(path) == md5 else "damaged"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unreadable"


def _locked(path: Path, archive: Archive, progress: Progress) -> AbstractContextManager[object]:
    """Held by one process at a time; the system lets go of it when the process ends, however it ends."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that downloads here", 0, archive.size)
        return lock.acquire()


def _download(archive: Archive, partial: Path, patience: Patience, progress: Progress) -> None:
    """Fill `partial` with the archive, its checksum right, from the first source that delivers."""
    failures = []
    slow = replace(patience, min_rate=patience.min_rate / 10)
    waiting = deque((url, patience) for url in archive.urls)
    while waiting:
        url, pace = waiting.popleft()
        continued = partial.exists()
        try:
            _fill(archive, partial, url, pace, progress)
            if _md5(partial) == archive.md5:
                return
            partial.unlink()
            if continued:  # the bytes from before may be the bad ones: this source deserves a fresh start
                waiting.appendleft((url, pace))
            raise _SourceFailed(f"what came is not the archive: its MD5 is not {archive.md5}")
        except _TooSlow as failure:
            failures.append(f"  {url}: {failure}")
            if pace != slow:  # when all else fails, slow is better than nothing
                waiting.append((url, slow))
        except _SourceFailed as failure:
            failures.append(f"  {url}: {failure}")
    raise ToolkitError("\n".join(["the archive could not be downloaded; the sources that were tried:", *failures]))


def _fill(archive: Archive, partial: Path, url: str, patience: Patience, progress: Progress) -> None:
    """Append to `partial` until it is as long as the archive, over as many connections as `patience` allows."""
    if _length(partial) > archive.size:
        partial.unlink()
    for _ in range(patience.connections):
        if _length(partial) == archive.size:
            return
        with _connect(archive, partial, url, patience) as response, partial.open("ab") as file:
            if response.status != 206:
                file.truncate(0)  # the whole archive comes, from its first byte
            _copy(response, file, archive.size, url, patience, progress)
    if (length := _length(partial)) < archive.size:
        raise _SourceFailed(
            f"broke off {patience.connections} times, at last after {length:,} bytes of {archive.size:,}"
        )


def _connect(archive: Archive, partial: Path, url: str, patience: Patience) -> HTTPResponse:
    """Ask for the bytes after those in `partial`; the answer may still be the whole archive (status 200)."""
    start = _length(partial)
    request = urllib.request.Request(url, headers={"User-Agent": "cifar"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        opener = urllib.request.build_opener(_WebOnly)
        response: HTTPResponse = opener.open(request, timeout=patience.timeout_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # Range Not Satisfiable: the bytes from before are of no use here
            partial.unlink()
            return _connect(archive, partial, url, patience)
        raise _SourceFailed(f"HTTP status {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _SourceFailed(f"no connection: {getattr(error, 'reason', None) or error}") from error
    if (offer := _offer(response)) not in (f"bytes {start}-{archive.size - 1}/{archive.size}", str(archive.size), ""):
        response.close()
        raise _SourceFailed(f"offers another file: {offer}, where {archive.size} bytes were expected")
    return response


def _offer(response: HTTPResponse) -> str:
    """What the server says that it will send: a range, a length, or nothing at all."""
    if response.status == 206:
        return response.headers.get("Content-Range") or "a part that it does not name"
    if response.status == 200:
        return response.headers.get("Content-Length") or ""
    return f"HTTP status {response.status}"


def _copy(response: HTTPResponse, file: IO[bytes], size: int, url: str, patience: Patience, progress: Progress) -> None:
    """Append what comes to `file`, until it has `size` bytes or the connection breaks.

    Raises:
        _SourceFailed: nothing came for `patience.timeout_seconds`.
        _TooSlow: less came than `patience.min_rate`.
    """
    host = urlsplit(url).netloc
    length = file.seek(0, os.SEEK_END)
    window_start, window_length = time.monotonic(), length
    while length < size:
        if (seconds := time.monotonic() - window_start) >= patience.window_seconds:
            if (rate := (length - window_length) / seconds) < patience.min_rate:
                raise _TooSlow(f"crawls at {rate / 1000:.1f} kB/s")
            window_start, window_length = time.monotonic(), length
        try:
            data = response.read1(min(CHUNK, size - length))  # whatever is there, so that a trickle is noticed
        except TimeoutError as error:
            raise _SourceFailed(f"sent nothing for {patience.timeout_seconds:g} seconds") from error
        except (OSError, HTTPException):
            return
        if not data:
            return
        length += file.write(data)
        file.flush()  # what has come is kept, even if the process is killed
        progress(host, length, size)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to http and https alone (the standard handler would also follow one to ftp)."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Put the archive's files into `folder/<archive.folder>`: all at once where there is no such folder yet.

    Only files that `archive` names are read, and each is written under that name: nothing else that a tar file can
    hold (links, devices, paths that lead out of the folder) has an effect.
    """
    place, unpacked = folder / archive.folder, folder / f".{archive.folder}.unpacking"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
    (unpacked / archive.folder).mkdir(parents=True)
    try:
        wanted = {f"{archive.folder}/{name}" for name in archive.files}
        with tarfile.open(path, mode="r|gz") as tar:
            for member in tar:
                if member.name in wanted and member.isfile() and (source := tar.extractfile(member)):
                    with source, (unpacked / member.name).open("wb") as file:
                        shutil.copyfileobj(source, file)
        if not _complete(archive, unpacked):
            raise ToolkitError(f"the archive does not hold what it should: {state_of_files(archive, unpacked)}")
        if not place.exists():
            (unpacked / archive.folder).rename(place)
        else:  # some of its files are damaged or missing
            for name in archive.files:
                (unpacked / archive.folder / name).replace(place / name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _complete(archive: Archive, folder: Path) -> bool:
    return all(state == "ok" for state in state_of_files(archive, folder).values())


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
