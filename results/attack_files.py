"""Mutate the structure of pictures and of checkpoints' pickles, and read the mutants as the toolkit does.

`python -m results.attack_files --only PNG --count 1250 --seed 1` adds one run to results/attacks.json.
"""

import argparse
import io
import itertools
import pickletools
import random
import re
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from results import attack_harness
from results.attack_harness import add_options
from tests.support.hostile import whole_checkpoint, with_records
from tests.support.picture_attacks import encoded, noise
from toolkit.errors import ToolkitError
from toolkit.inference import read_image
from toolkit.runs.checkpoint import load_checkpoint

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
    return split_at_markers(
        rb".{4}(?:meta|hdlr|pitm|iloc|iinf|infe|iprp|ipco|ispe|pixi|av1C|colr|ipma|iref|mdat|moov|trak|tkhd|stbl|stsz|stsc|stco)"
    )(content)


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
        "AVIF": lambda: [encoded(small, "AVIF", exif=exif), encoded(alpha, "AVIF"), encoded(gray, "AVIF"),
                         encoded(small, "AVIF", **frames),
                         encoded(alpha, "AVIF", save_all=True, append_images=[alpha])],
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


@dataclass
class FileAttack:
    """Mutants of the files of one format; "checkpoint" is the other kind beside the formats of pictures."""

    kind: str
    seed: int
    memory: int = 3 * 2**30

    def make(self, number: int) -> bytes:
        rng = random.Random(f"{self.kind} {number} {self.seed}")
        if self.kind == "checkpoint":
            seeds = [_checkpoint_opcodes()]
            mutated = mutate(rng.choice(seeds), rng, ODD_OPCODES + seeds[0][:200])
            return with_records({"data.pkl": b"".join(mutated)})
        seeds = _split_seeds(self.kind)
        mutated = mutate(rng.choice(seeds), rng, [part for seed in seeds for part in seed])
        return SPLITTERS[self.kind][1](mutated, rng)

    def read(self, content: bytes) -> str:
        try:
            if self.kind == "checkpoint":
                with tempfile.NamedTemporaryFile(suffix=".pt") as file:
                    file.write(content)
                    file.flush()
                    load_checkpoint(Path(file.name))
            else:
                read_image(content)
        except ToolkitError as error:
            message = str(error)
            if not message.isprintable():
                return f"raw text in a message: {message!r}"
            return "damaged" if "cannot be decoded" in message or "Pillow can read" in message else "refused"
        return "read"


@cache
def _split_seeds(kind: str) -> list[list[bytes]]:
    return [SPLITTERS[kind][0](content) for content in _seeds(kind)]


@cache
def _checkpoint_opcodes() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(whole_checkpoint())) as whole:
        return opcodes(whole.read("archive/data.pkl"))


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*SPLITTERS, "checkpoint"])
    add_options(parser, count=1250)
    options = parser.parse_args()
    kinds = [options.only] if options.only else [*SPLITTERS, "checkpoint"]
    attack_harness.main([FileAttack(kind, options.seed) for kind in kinds], options)


if __name__ == "__main__":
    main()
