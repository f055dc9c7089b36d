"""Pictures: an allow-list of formats, sizes and structure known before decoding, the memory of all threads bounded."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, features

from tests.support.hostile import little_memory
from tests.support.picture_attacks import (
    ATTACKS,
    avif_in_pieces,
    encoded,
    ico,
    jpeg_with,
    jpeg_with_scans,
    noise,
    plain,
    segment,
)
from toolkit.errors import ToolkitError
from toolkit.inference import image as image_module
from toolkit.inference import prepare, read_image
from toolkit.inference.budget import MemoryBudget
from toolkit.inference.picture_structure import examine

pytestmark = pytest.mark.hostile

SECONDS = 1.0  # of processor time

avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


@pytest.mark.parametrize("name", ATTACKS)
def test_files_that_cost_much_are_refused_at_once(name: str) -> None:
    if name.startswith("AVIF") and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    make, words = ATTACKS[name]
    content = make()
    start = time.thread_time()
    with little_memory(room=2**28), pytest.raises(ToolkitError, match="^a picture: ") as caught:
        read_image(content, name="a picture")
    assert time.thread_time() - start < SECONDS
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_ordinary_programs_write_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    comment = segment(0xFE, b"made by a camera")
    application = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 9]) + bytes(60_000)) for number in range(9))
    files = [
        jpeg_with(comment + application + b"\xff" * 20, noise(640, 480)),
        jpeg_with_scans(2),
        encoded(noise(640, 480), "JPEG", progressive=True, exif=exif),
        encoded(noise(640, 480), "JPEG", quality=100, subsampling=0),
        encoded(noise(640, 480), "TIFF", compression="tiff_lzw"),
        encoded(noise(640, 480), "TIFF", compression="jpeg"),
        encoded(noise(640, 480), "TIFF", compression="tiff_adobe_deflate", exif=exif),
        encoded(noise(640, 480).convert("1"), "TIFF", compression="group4"),
        encoded(noise(640, 480), "WEBP", exif=exif),
        encoded(noise(640, 480), "MPO", save_all=True, append_images=[noise(64, 64)]),
        encoded(noise(640, 480), "BMP"),
        encoded(noise(640, 480).convert("1"), "PPM"),
        b"P2 # a comment\n2 2\n# another\n255\n0 9 99 255\n",
    ]
    for content in files:
        assert read_image(content).shape == (32, 32, 3)


def test_an_icon_that_was_opened_elsewhere_is_not_decoded() -> None:
    """Its size is that of the icon, not of the PNG file in it."""
    with Image.open(io.BytesIO(ico(2000))) as icon, pytest.raises(ToolkitError, match="ICO files are not decoded"):
        prepare(icon)


def test_a_large_picture_is_not_overtaken_by_small_ones() -> None:
    budget, order = MemoryBudget(10), []

    def take(name: str, size: int) -> None:
        with budget.reserve(size):
            order.append(name)

    with budget.reserve(5):
        threads = []
        for name, size in (("large", 10), ("small", 1)):
            threads.append(threading.Thread(target=take, args=(name, size)))
            threads[-1].start()
            time.sleep(0.1)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]


def test_threads_never_reserve_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    content, held, most, lock = encoded(noise(600, 600), "PNG"), 0, 0, threading.Lock()
    budget = MemoryBudget(3 * 8 * 600 * 600)
    monkeypatch.setattr(image_module, "_memory", budget)
    prepare_picture = image_module._prepare

    def counting(image: Image.Image, **options: bool) -> object:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        try:
            return prepare_picture(image, **options)
        finally:
            with lock:
                held -= 1

    monkeypatch.setattr(image_module, "_prepare", counting)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read_image, [content] * 24))
    assert most <= 3
    assert all(np.array_equal(result, results[0]) for result in results)


@avif
@pytest.mark.parametrize("options", [{}, {"quality": 100, "subsampling": "4:4:4"}])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (33, 21), (150, 99)])
def test_avif_files_that_pillow_writes_are_read(size: tuple[int, int], mode: str, options: dict[str, object]) -> None:
    image = noise(*size, 4).convert(mode)
    for more in ({}, {"save_all": True, "append_images": [image, image]}):
        content = encoded(image, "AVIF", speed=10, **options, **more)
        structure = examine(content)
        assert (structure.width, structure.height) == size
        assert read_image(content).shape == (32, 32, 3)


@avif
def test_the_memory_of_an_avif_file_counts_the_pixels_of_all_its_images() -> None:
    """Eight bytes a pixel of the picture, and thirteen of each coded frame, be it color or alpha."""
    assert examine(encoded(plain(30, 20), "AVIF")).memory == 600 * (8 + 13)
    assert examine(encoded(noise(30, 20, 4), "AVIF")).memory == 600 * (8 + 2 * 13)


@avif
def test_avif_data_in_several_pieces_is_joined() -> None:
    content = encoded(noise(40, 40), "AVIF")
    assert np.array_equal(read_image(avif_in_pieces(content)), read_image(content))
