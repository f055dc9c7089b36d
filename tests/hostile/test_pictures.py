"""Pictures: an allow-list of formats, sizes and structure known before decoding, the memory of all threads bounded."""

import io
import re
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, features

from tests.support.hostile import linux, little_memory
from tests.support.picture_attacks import ATTACKS, encoded, ico, jpeg_with, jpeg_with_scans, noise, segment
from toolkit.errors import ToolkitError
from toolkit.inference import image as image_module
from toolkit.inference import prepare, read_image
from toolkit.inference.budget import MemoryBudget

pytestmark = pytest.mark.hostile

SECONDS = 1.0  # of processor time


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


@linux
@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_files_that_hold_more_pixels_than_they_declare_are_decoded_one_at_a_time() -> None:
    """Each takes a hundred megabytes that its declared size does not tell."""
    honest = encoded(Image.new("RGB", (6000, 6000), "red"), "AVIF", speed=10, quality=10)
    liar = re.sub(rb"(ispe\0{4}).{8}", lambda found: found[1] + struct.pack(">II", 40, 40), honest, flags=re.DOTALL)
    read_image(liar)
    with little_memory(room=2**29), ThreadPoolExecutor(8) as pool:
        assert {pixels.shape for pixels in pool.map(read_image, [liar] * 16)} == {(32, 32, 3)}
