"""Mutate the structure of pictures and of checkpoints' pickles; report outcomes, worst time and worst memory.

    python -m results.attack_files [--count 10000] [--only PNG] [--seed 0] [--output FILE.json]

Each file is read in a worker process with a limit of memory, which is killed after ten seconds. A file is made again
from its name: `python -m results.attack_files --write "PNG 17"` writes it to attack.bin.
"""

import argparse
import collections
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import pickletools
import random
import re
import resource
import struct
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.hostile import whole_checkpoint, with_records
from tests.support.picture_attacks import encoded, noise
from toolkit.errors import ToolkitError
from toolkit.inference import read_image
from toolkit.runs.checkpoint import load_checkpoint

SECONDS = 10
MEMORY = 3 * 2**30  # of address space, beyond which a worker's allocations fail

NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    32,
    255,
    256,
    4096,
    32_767,
    65_535,
    65_536,
    2**20,
    2**24,
    2**27,
    2**31 - 1,
    2**31,
    2**32 - 1,
]


def split_png(content: bytes) -> list[bytes]:
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4]) + 12
        parts.append(content[place : place + length])
        place += length
    return parts


def join_png(parts: list[bytes], rng: random.Random) -> bytes:
    """With correct checksums, else most mutations are refused for theirs; some keep theirs."""
    if rng.random() < 0.1:
        return b"".join(parts)
    joined = parts[0]
    for part in parts[1:]:
        body = part[8:-4]
        length = part[:4] if rng.random() < 0.05 else struct.pack(">I", len(body))
        joined += length + part[4:8] + body + struct.pack(">I", zlib.crc32(part[4:8] + body))
    return joined


def split_at_markers(pattern: bytes) -> Callable[[bytes], list[bytes]]:
    def split(content: bytes) -> list[bytes]:
        places = sorted({0, len(content), *(found.start() for found in re.finditer(pattern, content))})
        return [content[start:end] for start, end in itertools.pairwise(places)]

    return split


def split_riff(content: bytes) -> list[bytes]:
    parts, place = [content[:12]], 12
    while place + 8 <= len(content):
        length = 8 + int.from_bytes(content[place + 4 : place + 8], "little")
        parts.append(content[place : place + length + length % 2])
        place += length + length % 2
    return parts


def split_boxes(content: bytes) -> list[bytes]:
    """ISO base media boxes, those inside `meta` and below singly."""
    return split_at_markers(rb".{4}(?:meta|hdlr|pitm|iloc|iinf|infe|iprp|ipco|ispe|pixi|av1C|colr|ipma|mdat)")(content)


def split_evenly(head: int, width: int) -> Callable[[bytes], list[bytes]]:
    """Fields of `width` bytes up to `head`, then the rest."""

    def split(content: bytes) -> list[bytes]:
        return [content[place : place + width] for place in range(0, head, width)] + [content[head:]]

    return split


def split_tiff(content: bytes) -> list[bytes]:
    place = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[place : place + 2], "little")
    ends = [0, 8, place, place + 2, *(place + 2 + 12 * number for number in range(1, count + 1)), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(ends)]


def join(parts: list[bytes], rng: random.Random) -> bytes:
    return b"".join(parts)


def _seeds(kind: str) -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small, gray, alpha = noise(48, 40), noise(48, 40).convert("L"), noise(40, 48, 4)
    frames = {"save_all": True, "append_images": [noise(48, 40)]}
    return {
        "PNG": lambda: [encoded(small, "PNG", exif=exif), encoded(alpha, "PNG"), encoded(gray.convert("P"), "PNG"),
                        encoded(small, "PNG", **frames), encoded(gray.convert("I;16"), "PNG")],
        "JPEG": lambda: [encoded(small, "JPEG", exif=exif), encoded(small, "JPEG", progressive=True),
                         encoded(gray, "JPEG"), encoded(small.convert("CMYK"), "JPEG"),
                         encoded(small, "MPO", **frames)],
        "WEBP": lambda: [encoded(small, "WEBP", exif=exif), encoded(alpha, "WEBP", lossless=True),
                         encoded(small, "WEBP", **frames)],
        "GIF": lambda: [encoded(gray, "GIF"), encoded(small.convert("P"), "GIF", comment=b"x"),
                        encoded(small, "GIF", **frames)],
        "BMP": lambda: [encoded(small, "BMP"), encoded(gray, "BMP"), encoded(gray.convert("1"), "BMP")],
        "TIFF": lambda: [encoded(image, "TIFF", compression=compression) for image, compression in (
            (small, "raw"), (small, "tiff_lzw"), (gray, "tiff_adobe_deflate"), (small, "jpeg"), (small, "packbits"),
            (gray.convert("1"), "group4"), (gray.convert("1"), "group3"), (gray.convert("I;16"), "raw"))],
        "AVIF": lambda: [encoded(small, "AVIF", exif=exif), encoded(alpha, "AVIF"), encoded(gray, "AVIF")],
        "PPM": lambda: [encoded(small, "PPM"), encoded(gray, "PPM"), b"P3 3 2 255\n" + b"1 2 3 " * 6,
                        b"P1\n4 4\n" + b"1 0 " * 8, b"P6 4 4 99\n" + bytes(48)],
    }[kind]()  # fmt: skip


SPLITTERS: dict[str, tuple[Callable[[bytes], list[bytes]], Callable[[list[bytes], random.Random], bytes]]] = {
    "PNG": (split_png, join_png),
    "JPEG": (split_at_markers(rb"\xff[^\x00\xff\xd0-\xd7]"), join),
    "WEBP": (split_riff, join),
    "GIF": (split_at_markers(rb"[!,;]"), join),
    "BMP": (split_evenly(56, 2), join),
    "TIFF": (split_tiff, join),
    "AVIF": (split_boxes, join),
    "PPM": (split_at_markers(rb"[ \n]"), join),
}


def mutate(parts: list[bytes], rng: random.Random, pool: list[bytes]) -> list[bytes]:
    """Drop, repeat, move or cut parts, take some from other files, replace numbers in them, insert bytes."""
    parts = list(parts)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(parts))
        change = rng.choice(["drop", "repeat", "move", "foreign", "number", "number", "number", "bytes", "cut"])
        if change == "drop" and len(parts) > 1:
            del parts[place]
        elif change == "repeat":
            times = rng.choice([2, 3, 100, 5000])
            parts[place : place + 1] = [parts[place]] * min(times, max(2, 2_000_000 // max(1, len(parts[place]))))
        elif change == "move":
            parts.insert(rng.randrange(len(parts)), parts.pop(place))
        elif change == "foreign":
            parts.insert(place, rng.choice(pool))
        elif change == "number":
            form = rng.choice("<>") + rng.choice("BHHII")
            at = rng.randrange(min(64, len(parts[place]) + 1))
            number = rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form))
            parts[place] = parts[place][:at] + struct.pack(form, number) + parts[place][at + struct.calcsize(form) :]
        elif change == "bytes":
            at = rng.randrange(len(parts[place]) + 1)
            parts[place] = parts[place][:at] + rng.randbytes(rng.choice([1, 2, 16])) + parts[place][at + 2 :]
        elif change == "cut":
            parts[place] = parts[place][: rng.randrange(len(parts[place]) + 1)]
    return parts


def opcodes(pickle: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(pickle) if place is not None] + [len(pickle)]
    return [pickle[start:end] for start, end in itertools.pairwise(places)]


ODD_OPCODES = [
    *(b"%c" % code for code in b"(.012N]})\x85\x86\x87tldeasubRQ\x81\x93\x8f\x91"),
    b"h\0", b"q\0", b"j\0\0\0\0", b"\x80\4", b"I9\n", b"\x8a\x08" + b"\xff" * 8, b"\x95\xff\xff\xff\xff\0\0\0\0",
    b"cbuiltins\nbytearray\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"X\4\0\0\0\xed\xa0\x80a",
]  # fmt: skip


class Maker:
    """Makes the files of one family by their numbers."""

    def __init__(self, family: str) -> None:
        self.family = family
        if family == "checkpoint":
            with zipfile.ZipFile(io.BytesIO(whole_checkpoint())) as whole:
                self.seeds = [opcodes(whole.read("archive/data.pkl"))]
            self.pool = ODD_OPCODES + self.seeds[0][:200]
            return
        split, self.join = SPLITTERS[family]
        self.seeds = [split(content) for content in _seeds(family)]
        self.pool = [part for seed in self.seeds for part in seed]

    def make(self, number: int, seed: int) -> bytes:
        rng = random.Random(f"{self.family} {number} {seed}")
        mutated = mutate(rng.choice(self.seeds), rng, self.pool)
        if self.family == "checkpoint":
            return with_records({"data.pkl": b"".join(mutated)})
        return self.join(mutated, rng)


def read(family: str, content: bytes, folder: Path) -> str:
    """Read a file as the toolkit does; how that ended."""
    try:
        if family == "checkpoint":
            path = folder / "attack.pt"
            path.write_bytes(content)
            load_checkpoint(path)
        else:
            read_image(content)
    except ToolkitError as error:
        return "damaged" if "cannot be decoded" in str(error) or "Pillow can read" in str(error) else "refused"
    except MemoryError:
        return "out of memory"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "read"


def work(connection: "multiprocessing.connection.Connection[Any, Any]", family: str, seed: int) -> None:
    warnings.simplefilter("ignore")
    maker = Maker(family)
    read(family, maker.make(0, seed), Path(tempfile.gettempdir()))  # loads the libraries
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        while (number := connection.recv()) is not None:
            content = maker.make(number, seed)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before, start = _status("VmRSS"), time.process_time()
            outcome = read(family, content, Path(folder))
            connection.send((outcome, time.process_time() - start, _status("VmHWM") - before, len(content)))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@dataclass
class Tally:
    """What reading the files of one family took.

    Attributes:
        files: how many.
        seconds: the most processor time that one took, and its number.
        memory: the most memory that one took, bytes, and its number.
        outcomes: how many ended how.
        findings: number and outcome of those that ended otherwise than by a result or a message.
    """

    files: int = 0
    seconds: tuple[float, int] = (0.0, -1)
    memory: tuple[int, int] = (0, -1)
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str, seconds: float, memory: int) -> None:
        known = outcome in ("read", "refused", "damaged")
        self.files += 1
        self.seconds = max(self.seconds, (seconds, number))
        self.memory = max(self.memory, (memory, number))
        self.outcomes[outcome if known else "finding"] += 1
        if not known:
            self.findings.append((number, outcome))


def attack(family: str, count: int, seed: int) -> Tally:
    """Read `count` mutated files in a worker, which is replaced when it had to be killed or died."""
    tally = Tally()
    numbers = iter(range(count))
    number = next(numbers, None)
    while number is not None:
        connection, other = multiprocessing.Pipe()
        worker = multiprocessing.get_context("spawn").Process(target=work, args=(other, family, seed))
        worker.start()
        other.close()
        while number is not None:
            connection.send(number)
            waited = time.monotonic() + 120 if tally.files == 0 else time.monotonic() + 6 * SECONDS
            while not connection.poll(0.5) and worker.is_alive() and time.monotonic() < waited:
                pass
            try:
                outcome, seconds, memory, _ = connection.recv() if connection.poll() else ("hangs", SECONDS, 0, 0)
            except EOFError:
                outcome, seconds, memory = "killed the process", 0.0, 0
            tally.add(number, outcome, seconds, memory)
            number = next(numbers, None)
            if outcome in ("hangs", "killed the process"):
                break
        else:
            connection.send(None)
            worker.join(10)
        worker.kill()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="pictures in all; and checkpoints")
    parser.add_argument("--only", choices=[*SPLITTERS, "checkpoint"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write", metavar="'FAMILY NUMBER'")
    options = parser.parse_args()
    if options.write:
        family, number = options.write.split()
        Path("attack.bin").write_bytes(Maker(family).make(int(number), options.seed))
        return
    results = {}
    for family in [options.only] if options.only else [*SPLITTERS, "checkpoint"]:
        count = options.count if family == "checkpoint" or options.only else options.count // len(SPLITTERS)
        tally = attack(family, count, options.seed)
        outcomes = ", ".join(f"{outcome} {times:,}" for outcome, times in tally.outcomes.most_common())
        print(
            f"{family:10} {tally.files:6,} files, at most {tally.seconds[0]:.2f} s (number {tally.seconds[1]}) and "
            f"{tally.memory[0] / 2**20:,.0f} MiB (number {tally.memory[1]}): {outcomes}",
            *(f"  {number}: {outcome}" for number, outcome in tally.findings[:10]),
            sep="\n",
            flush=True,
        )
        results[family] = {
            "files": tally.files, "worst_seconds": round(tally.seconds[0], 3), "worst_memory_bytes": tally.memory[0],
            "outcomes": dict(tally.outcomes), "findings": tally.findings,
        }  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps({"seed": options.seed, "families": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
