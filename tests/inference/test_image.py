"""The picture rule, format by format, and refused files. Golden pixels: test_picture_rule.py."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from toolkit.errors import ToolkitError
from toolkit.inference import image as image_module
from toolkit.inference import prepare, read_image
from toolkit.inference.budget import MemoryBudget
from toolkit.inference.image import PICTURE_SUFFIXES, is_picture_name


def noise(height: int = 32, width: int = 32, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, value: object, kind: str, **options: object) -> NDArray[np.uint8]:
    """A 32x32 picture of one value, written as `kind` and read."""
    return read_image(encoded(Image.new(mode, (32, 32), value), kind, **options))


def assert_all(pixels: NDArray[np.uint8], rgb: tuple[int, int, int]) -> None:
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [rgb])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_32x32_rgb_passes_byte_for_byte(kind: str) -> None:
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(noise()), kind)), noise())


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((33, 32), (0, 0, 32, 32)),
        ((47, 80), (0, 16, 47, 63)),
        ((641, 480), (80, 0, 560, 480)),
        ((31, 7), (12, 0, 19, 7)),
        ((200, 199), (0, 0, 199, 199)),
    ],
)
def test_center_square_is_cut_out_then_resized(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    image = Image.fromarray(noise(size[1], size[0]))
    expected = np.array(image.crop(box).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(prepare(image), expected)


def test_the_filter_is_antialiased() -> None:
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = prepare(Image.fromarray(stripes))[8:-8, 8:-8].astype(int)
    assert abs(middle - 127.5).max() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int, kind: str) -> None:
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16, :16], upright[:16, 16:], upright[16:, :16] = (240, 20, 20), (20, 240, 20), (20, 20, 240)
    # The stored picture is the inverse of what the tag asks for.
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = undo
    stored = ImageOps.exif_transpose(_with_exif(Image.fromarray(upright), exif))
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    got = read_image(encoded(stored, kind, exif=exif, **options))
    assert abs(got.astype(int) - upright)[[4, 4, 28, 28], [4, 28, 4, 28]].max() < 12


def _with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))


def test_whole_pictures_are_upright_and_over_white(tmp_path: Path) -> None:
    drawn = Image.new("RGBA", (60, 20), (10, 20, 30, 255))
    drawn.paste((0, 0, 0, 0), (0, 0, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turned clockwise, the left half is the upper one
    (tmp_path / "x.png").write_bytes(encoded(drawn, "PNG", exif=exif))
    expected = np.full((60, 20, 3), 255, np.uint8)
    expected[30:] = (10, 20, 30)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", resize=False), expected)
    np.testing.assert_array_equal(read_image((tmp_path / "x.png").read_bytes(), resize=False), expected)
    np.testing.assert_array_equal(prepare(Image.open(tmp_path / "x.png"), resize=False), expected)
    with pytest.raises(ToolkitError, match=r"60 x 20 pixels; the limit is 1,000"):
        read_image(tmp_path / "x.png", max_pixels=1000, resize=False)


@pytest.mark.hostile
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_the_pixels() -> None:
    content = encoded(Image.new("RGB", (32, 32), (9, 9, 9)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert_all(read_image(content), (9, 9, 9))


def test_transparency_is_over_white() -> None:
    assert_all(flat("RGBA", (10, 20, 30, 0), "PNG"), (255, 255, 255))
    assert_all(flat("RGBA", (10, 20, 30, 255), "PNG"), (10, 20, 30))
    assert_all(flat("RGBA", (0, 100, 200, 51), "PNG"), (204, 224, 244))  # a fifth of the color
    assert_all(flat("LA", (0, 51), "PNG"), (204, 204, 204))


def test_palettes() -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert_all(read_image(encoded(image, kind)), (200, 100, 50))
    assert_all(read_image(encoded(image, "PNG", transparency=1)), (255, 255, 255))
    assert_all(read_image(encoded(image, "GIF", transparency=1)), (255, 255, 255))
    assert_all(read_image(encoded(image, "PNG", transparency=b"\xff\x33")), (244, 224, 214))


def test_one_transparent_level_of_gray_or_rgb() -> None:
    assert_all(flat("L", 7, "PNG", transparency=7), (255, 255, 255))
    assert_all(flat("L", 7, "PNG", transparency=8), (7, 7, 7))
    assert_all(flat("RGB", (1, 2, 3), "PNG", transparency=(1, 2, 3)), (255, 255, 255))
    for level in (0, 3000):
        assert_all(flat("I;16", level, "PNG", transparency=level), (255, 255, 255))


def test_gray_and_one_bit() -> None:
    assert_all(flat("L", 90, "PNG"), (90, 90, 90))
    assert_all(flat("1", 1, "PNG"), (255, 255, 255))
    assert_all(flat("1", 0, "TIFF"), (0, 0, 0))


def test_cmyk() -> None:
    assert_all(flat("CMYK", (0, 0, 0, 0), "TIFF"), (255, 255, 255))
    assert_all(flat("CMYK", (255, 0, 0, 0), "TIFF"), (0, 255, 255))
    assert_all(flat("CMYK", (0, 0, 0, 255), "JPEG", quality=100), (0, 0, 0))


@pytest.mark.parametrize(("level", "gray"), [(0, 0), (257, 1), (300, 1), (32768, 128), (65535, 255)])
def test_16_bits_are_scaled(level: int, gray: int) -> None:
    assert_all(flat("I;16", level, "PNG"), (gray,) * 3)
    assert_all(flat("I;16", level, "TIFF"), (gray,) * 3)
    big_endian = Image.frombytes("I;16B", (32, 32), struct.pack(">H", level) * 1024)
    assert_all(prepare(big_endian), (gray,) * 3)
    pgm = b"P5 32 32 65535\n" + struct.pack(">H", level) * 1024
    assert_all(read_image(pgm), (gray,) * 3)


def test_16_bits_of_color() -> None:
    row = b"\0" + struct.pack(">HHH", 0, 32896, 65535) * 32
    assert_all(read_image(_png(32, 32, bits=16, color=2, rows=row * 32)), (0, 128, 255))


def test_32_bit_integers_use_their_own_range() -> None:
    levels = np.full((32, 32), -(2**30), np.int32)
    levels[16:] = 2**30
    got = read_image(encoded(Image.fromarray(levels), "TIFF"))
    assert_all(got[:16].repeat(2, axis=0), (0, 0, 0))
    assert_all(got[16:].repeat(2, axis=0), (255, 255, 255))


def test_smallest_difference_of_two_floats() -> None:
    levels = np.zeros((32, 32), np.float32)
    levels[0, 0], levels[0, 1] = -1e-45, 1e-45
    got = prepare(Image.fromarray(levels))
    assert got[0, 0].tolist() == [0] * 3
    assert got[0, 1].tolist() == [255] * 3


@pytest.mark.parametrize(("value", "gray"), [(0.5, 128), (1.0, 255), (100.0, 100), (65535.0, 255), (1e38, 0)])
def test_floats_use_the_smallest_scale_that_holds_them(value: float, gray: int) -> None:
    assert_all(flat("F", value, "TIFF"), (gray,) * 3)


def test_floats_that_are_not_finite() -> None:
    levels = np.full((32, 32), np.nan, np.float32)
    levels[0, 0], levels[0, 1] = np.inf, -np.inf
    got = prepare(Image.fromarray(levels))
    assert got[0, 0].tolist() == [255] * 3
    assert got[0, 1].tolist() == [0] * 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert_all(read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)), (250, 0, 0))


def test_modes_of_large_pictures_are_converted_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.arange(70 * 70, dtype=np.int32).reshape(70, 70) * 1000
    images = [
        Image.fromarray(noise(70, 70, 4)), Image.fromarray(noise(70, 70)).quantize(8), Image.fromarray(levels),
        Image.fromarray(noise(70, 70)).convert("CMYK"), Image.fromarray(noise(70, 70)[..., 0]).convert("1"),
    ]  # fmt: skip
    whole = [prepare(image) for image in images]
    monkeypatch.setattr(image_module, "_BAND_PIXELS", 200)
    for image, expected in zip(images, whole, strict=True):
        np.testing.assert_array_equal(prepare(image), expected)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (20_000, 3), (32, 65_000)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert_all(prepare(Image.new("RGBA", size, (1, 2, 3, 255))), (1, 2, 3))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *, bits: int, color: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


@pytest.mark.hostile
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 60_000])  # above our limit; above Pillow's too
def test_decompression_bomb(side: int) -> None:
    with pytest.raises(ToolkitError, match="pixels"):
        read_image(_png(side, side, bits=1, color=0, rows=b"\0" * 10_000))


@pytest.mark.hostile
def test_the_pixel_limit_does_not_depend_on_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ToolkitError, match="60000 x 60000 pixels; the limit is"):
        read_image(_png(60_000, 60_000, bits=1, color=0, rows=b"\0" * 10_000))


@pytest.mark.hostile
def test_threads_share_the_memory_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = MemoryBudget(8 * 64 * 64)
    monkeypatch.setattr(image_module, "_memory", budget)
    with budget.reserve(1):
        thread = threading.Thread(target=prepare, args=(Image.new("RGB", (64, 64)),))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(noise(64, 64)), kind)
    path = tmp_path / "half"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ToolkitError, match="half cannot be decoded: "):
        read_image(path)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"hello, world\n" * 100, "not a picture"), (b"\0" * 5000, "not a picture")],
)
def test_files_that_are_not_pictures(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    with pytest.raises(ToolkitError, match=f"cat.png:? .*{reason}"):
        read_image(path)
    with pytest.raises(ToolkitError, match=f"^standard input:? .*{reason}"):
        read_image(content, name="standard input")


@pytest.mark.hostile
def test_formats_whose_readers_start_programs_are_refused() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ToolkitError, match="EPS files are not decoded; convert"):
        read_image(eps)
    assert not {".eps", ".ps", ".iim", ".h5", ".mpg", ".pdf"} & PICTURE_SUFFIXES
    assert {".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".bmp", ".mpo"} <= PICTURE_SUFFIXES


def test_is_picture_name() -> None:
    assert all(map(is_picture_name, ("a.png", "a.b.JPG", "a.jpeg", "a.webp", "a.TIF")))
    assert not any(map(is_picture_name, ("notes.txt", "png", ".png", "a.png.gz", "a.eps", "")))


def test_names_load_no_reader() -> None:
    code = (
        "import sys; from toolkit.inference.image import is_picture_name\n"
        "assert is_picture_name('a.png') and is_picture_name('a.tif') and not is_picture_name('a.ico')\n"
        "assert not {'PIL.PngImagePlugin', 'PIL.TiffImagePlugin'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.hostile
def test_missing_folder_and_forbidden_names(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="cannot be opened: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ToolkitError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ToolkitError, match=r"a\\x00b cannot be opened"):
        read_image("a\0b")


@pytest.mark.hostile
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX special files")
def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "cat.png"
    os.mkfifo(fifo)
    with pytest.raises(ToolkitError, match=r"is a pipe \(FIFO\)"):
        read_image(fifo)
    with pytest.raises(ToolkitError, match="is a device"):
        read_image("/dev/zero")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    with pytest.raises(ToolkitError, match="is a device"):
        read_image(tmp_path / "link.png")


@pytest.mark.hostile
@pytest.mark.skipif(sys.platform == "win32", reason="sparse files")
def test_a_giant_sparse_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "cat.png").open("wb") as file:
        file.truncate(100 * 2**30)
    with pytest.raises(ToolkitError, match="bytes; at most"):
        read_image(tmp_path / "cat.png")


def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"no picture")
    code = (
        "import sys, warnings; warnings.simplefilter('error', ResourceWarning)\n"
        "from toolkit.inference import read_image\n"
        "try: read_image(sys.argv[1])\nexcept Exception: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, str(tmp_path / "cat.png")], capture_output=True, text=True, check=True
    )
    assert "ResourceWarning" not in done.stderr


_SEEDS = [
    encoded(Image.fromarray(noise(9, 9)), "PNG"),
    encoded(Image.fromarray(noise(9, 9)).quantize(8), "PNG", transparency=3),
    encoded(
        Image.fromarray(noise(16, 16)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    ),
    encoded(Image.fromarray(noise(9, 9)).quantize(8), "GIF"),
    encoded(Image.fromarray(noise(9, 9)), "BMP"),
    encoded(Image.fromarray(noise(9, 9)), "TIFF"),
    encoded(Image.fromarray(noise(9, 9)), "WEBP"),
    encoded(Image.fromarray(noise(9, 9)), "AVIF"),
    encoded(Image.fromarray(noise(9, 9)), "PPM"),
    encoded(Image.fromarray(noise(9, 9)), "TIFF", compression="jpeg"),
]


@pytest.mark.hostile
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.sampled_from(_SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=0, max_size=8),
    cut=st.integers(0, 10_000),
)
def test_mutated_files_give_a_picture_or_a_toolkit_error(seed: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(seed)
    for position, value in changes:
        content[position % min(len(content), 200)] = value  # headers are in the first bytes
    message, shape = "", (32, 32, 3)
    try:
        shape = read_image(bytes(content[: cut or None])).shape
    except ToolkitError as error:
        message = str(error)
    assert message.isprintable()
    assert shape == (32, 32, 3)


def test_a_bmp_with_the_short_header_of_os2() -> None:
    """Two by two pixels: 26 bytes of headers, and rows padded to eight bytes; 42 in all."""
    row = bytes((0, 0, 200)) * 2 + bytes(2)
    content = b"BM" + struct.pack("<IHHI", 42, 0, 0, 26) + struct.pack("<IHHHH", 12, 2, 2, 1, 24) + row * 2
    assert_all(read_image(content), (200, 0, 0))
    with pytest.raises(ToolkitError, match="it ends in its header"):
        read_image(content[:25])
