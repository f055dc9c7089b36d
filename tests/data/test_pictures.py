"""Decoding on all cores, damaged files, and the cache: built once, shared by processes, rebuilt when damaged."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.pictures import noise, open_pictures, pixels_of, pixels_of_seeds, write_picture, write_split_folder
from tests.support.sources import ROOT
from toolkit.data.dataset import find_data, identify_data
from toolkit.data.memory import available_memory_bytes
from toolkit.data.picture_set import UnreadablePictures, _permute
from toolkit.data.pictures import decode_pictures
from toolkit.errors import ToolkitError
from toolkit.inference import read_image

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and limits")


@pytest.fixture
def pets(tmp_path: Path, cache: Path) -> Path:
    return write_split_folder(tmp_path / "pets")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures of each decoding."""
    calls: list[int] = []

    def record(paths, **options):
        calls.append(len(paths))
        return decode_pictures(paths, **options)

    monkeypatch.setattr("toolkit.data.picture_set.decode_pictures", record)
    return calls


def entry_of(cache: Path) -> Path:
    (entry,) = (cache / "pictures").glob("*.pictures")
    return entry


# Decoding


def test_pictures_are_those_of_predict(tmp_path):
    paths = []
    for index, size in enumerate([(32, 32), (50, 31), (300, 20), (40, 90)] * 40):
        paths.append(tmp_path / f"{index}.jpg")
        Image.fromarray(noise(index, 300)[: size[1], : size[0]]).save(paths[-1])
    progress: list[tuple[int, int]] = []
    pictures = decode_pictures(paths, on_progress=lambda *values: progress.append(values))
    expected = np.stack([read_image(path) for path in paths]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pictures.pixels, expected)
    assert pictures.small.tolist() == [False, True, True, False] * 40
    assert len(set(pictures.digests)) == 160
    assert progress == [(0, 160), (64, 160), (128, 160), (160, 160)]


def test_small_pictures_are_counted(pets):
    write_picture(pets / "train/cat/small.png", 7, side=31)
    source = open_pictures(pets)
    assert source.findings().describe() == ["1 picture with a shorter side below 32 pixels: enlarged, hence blurred"]


@pytest.mark.hostile
def test_damaged_files_are_all_listed(pets):
    (pets / "train/cat/b.png").write_bytes((pets / "train/cat/1.png").read_bytes()[:200])
    (pets / "test/dog/a.jpg").write_bytes(b"not a picture")
    (pets / "test/dog/c.gif").touch()
    notes: list[str] = []
    with pytest.raises(UnreadablePictures) as error:
        open_pictures(pets, notes).train()
    assert [note.removeprefix(f"{pets}/").split()[0].rstrip(":") for note in notes] == [
        "test/dog/a.jpg",
        "test/dog/c.gif",
        "train/cat/b.png",
    ]
    assert [problem.error for problem in error.value.problems] == notes
    assert str(error.value) == (
        f"3 pictures of 13 cannot be used, first {notes[0]}. Replace or remove them, or pass --skip-damaged"
    )


@pytest.mark.hostile
def test_damaged_files_are_skipped_and_recorded(pets):
    (pets / "train/cat/b.png").write_bytes(b"not a picture")
    source = open_pictures(pets, skip_damaged=True)
    assert pixels_of(source.train().images) == pixels_of_seeds(1, 2, 3, 4, 5, 6)
    findings = json.loads(json.dumps(source.findings().as_dict()))
    assert findings["skipped"] == [
        {
            "path": "train/cat/b.png",
            "error": f"{pets}/train/cat/b.png: not a picture in a known format (PNG, JPEG, WEBP, GIF, BMP, TIFF, "
            "AVIF, PPM); convert it to PNG or JPEG",
        }
    ]
    assert "skipped 1 picture that cannot be read" in source.findings().describe()


@pytest.mark.hostile
def test_files_that_vanish_while_they_are_read(pets):
    source = open_pictures(pets)
    (pets / "train/cat/2.png").unlink()
    with pytest.raises(UnreadablePictures, match=r"train/cat/2.png cannot be opened: No such file"):
        source.train()


@pytest.mark.hostile
@posix
def test_a_file_that_was_out_of_reach_is_read_again(pets, decoded):
    """Its size and time do not change, so the cache entry's key does not."""
    path, content = pets / "train/cat/2.png", (pets / "train/cat/2.png").read_bytes()
    status = path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UnreadablePictures):
            open_pictures(pets).train()
    assert decoded == [10]
    path.write_bytes(content)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert len(open_pictures(pets).train()) == 6
    assert decoded == [10, 10]


# The cache


def test_pictures_are_decoded_once(pets, cache, decoded):
    first = open_pictures(pets)
    images = first.train()
    assert first.train() is images
    second = open_pictures(pets)
    assert torch.equal(second.train().images, images.images)
    assert torch.equal(second.test().labels, first.test().labels)
    assert decoded == [10]


def test_an_entry_replaces_earlier_ones_of_the_same_folder(pets, cache, decoded, tmp_path):
    other = write_split_folder(tmp_path / "other")
    open_pictures(other).train()
    open_pictures(pets).train()
    write_picture(pets / "train/cat/7.png", 7)
    assert len(open_pictures(pets).train()) == 7
    assert decoded == [10, 10, 11]
    assert len(list((cache / "pictures").glob("*.pictures"))) == 2
    open_pictures(other).train()
    assert len(decoded) == 3


@pytest.mark.hostile
@pytest.mark.parametrize("damage", ["empty", "truncated", "longer", "another byte", "text", "other header"])
def test_a_damaged_entry_is_rebuilt(pets, cache, decoded, damage):
    images = open_pictures(pets).train().images
    path = entry_of(cache)
    content = bytearray(path.read_bytes())
    header_end = content.index(b"\n", 20) + 1
    match damage:
        case "empty":
            content.clear()
        case "truncated":
            del content[-5000:]
        case "longer":
            content += b"x"
        case "another byte":
            content[header_end + 5000] ^= 1
        case "text":
            content[:] = b"hello"
        case "other header":
            content[17:header_end] = b"[" * 50_000 + b"\n"
    path.write_bytes(content)
    for expected in (True, False):
        notes: list[str] = []
        assert torch.equal(open_pictures(pets, notes).train().images, images)
        assert [note.startswith(f"the cache entry {path} is damaged") for note in notes] == [True] * expected
    assert decoded == [10, 10]


@pytest.mark.hostile
@posix
def test_a_full_disk_under_the_cache_costs_only_the_cache(pets, cache):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    notes: list[str] = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        assert len(open_pictures(pets, notes).train()) == 6
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(notes) == 1
    assert notes[0].startswith(f"decoded pictures are not cached: cannot write {cache}/pictures/")
    assert not [path for path in (cache / "pictures").iterdir() if path.suffix != ".lock"]


@pytest.mark.hostile
def test_a_cache_folder_that_cannot_be_made(pets, cache):
    cache.write_text("a file")
    notes: list[str] = []
    assert len(open_pictures(pets, notes).train()) == 6
    assert [note.startswith("decoded pictures are not cached: cannot write") for note in notes] == [True]


@pytest.mark.hostile
def test_two_processes_decode_once(pets, cache, monkeypatch):
    """The second waits while the first, here this process, decodes; then it loads the entry and decodes nothing."""
    program = (
        "import sys; from toolkit.data.dataset import find_data\n"
        "source = find_data(sys.argv[1], note=lambda text: print(text, flush=True), on_pictures=print)\n"
        "print(len(source.train()))"
    )
    decoding, release = threading.Event(), threading.Event()

    def decode_slowly(paths, **options):
        decoding.set()
        release.wait(60)
        return decode_pictures(paths, **options)

    monkeypatch.setattr("toolkit.data.picture_set.decode_pictures", decode_slowly)
    thread = threading.Thread(target=lambda: open_pictures(pets).train())
    thread.start()
    decoding.wait(60)
    command = [sys.executable, "-c", program, str(pets)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting for another process that decodes these pictures\n"
        release.set()
        assert process.communicate(timeout=60)[0] == "6\n"
    thread.join()


# Identity and memory


def test_the_identity_of_a_copy_elsewhere_is_the_same(pets, tmp_path, cache):
    copy = tmp_path / "elsewhere"
    for number, path in enumerate(sorted(pets.rglob("*.png"), reverse=True)):
        target = copy / path.relative_to(pets).parent / f"{number}.bmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    identities = [identify_data("pictures", find_data(str(folder)).train()) for folder in (pets, copy)]
    assert identities[0] == identities[1]
    write_picture(copy / "train/cat/new.png", 99)
    assert identify_data("pictures", find_data(str(copy)).train()) != identities[0]


def test_pictures_that_do_not_fit_in_memory_are_refused_with_figures(pets, monkeypatch, decoded):
    monkeypatch.setattr("toolkit.data.picture_set.available_memory_bytes", lambda: 30_000)
    with pytest.raises(ToolkitError, match=r"10 pictures take 0.0 GiB of memory, and 0.0 GiB are available; use fewer"):
        open_pictures(pets).train()
    assert decoded == []


def test_available_memory(tmp_path):
    (tmp_path / "proc").mkdir()
    assert (available_memory_bytes(root=tmp_path) or 1) > 0
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    assert available_memory_bytes(root=tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, content in (
        ("memory.max", "max"),
        ("memory.current", "5000"),
        ("memory.stat", "anon 1\ninactive_file 7\n"),
    ):
        (group / name).write_text(content)
    assert available_memory_bytes(root=tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("6000\n")
    assert available_memory_bytes(root=tmp_path) == 1007


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_permute_equals_indexing(count):
    rows = np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(count)
        permuted = rows.copy()
        _permute(permuted, order)
        np.testing.assert_array_equal(permuted, rows[order])
