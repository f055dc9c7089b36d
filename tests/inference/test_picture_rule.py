"""Golden pixels of the picture rule: the same on every Pillow that pyproject.toml admits (`.ci/run` tries two).

Needs pytest, NumPy and Pillow alone. Run as a program, this file prints the table, for a deliberate change of the rule.
"""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from toolkit.inference.image import prepare, read_image

# name -> the start of the SHA-256 of the 3,072 bytes, and four pixels along the diagonal, which show a difference.
GOLDEN = {
    "32 x 32": "e408e50ccc4db33d87b4fb0dd9afb15f 005ab4 8cdf34 82bf04 b6d0fc",
    "square, enlarged": "c820b84adb9e1fab999a50d2cc178841 0059b2 1b74ce 449bff 6bc118",
    "square, reduced": "2553f56fa9c59fcaf208a518586add95 1f78e0 7a7e82 818b87 7b7a92",
    "tall": "041416709dddb8f629e7f8e560c2da6f 7cb6a1 cd76bc a85941 b482c3",
    "tall, odd difference": "34d39cbc59554bf169ab876dd9802b03 a8ed2c e31341 1c35a6 d55b22",
    "tall, 32 wide": "00e204438c7a3793a653fb8696ff600f d5e603 e9dde4 75391f 31bc78",
    "tall, very": "2918670c83384d3180eca48f6ee30682 5c296a d55c6c c78242 3e747b",
    "wide": "090cf8b5f6012fea94594d4f29124edc 4495a1 b853bc 794540 7d66c3",
    "wide, odd difference": "1a093c696c8d2eddc1e961585618f621 67c92c b1ca41 e9e9a6 953922",
    "wide, 32 high": "89067edf1f995f8d9919b3b3baaf10cd 4da203 6199e4 edf51f a97878",
    "wide, very": "fdd2012e7c01b653ad0e541333b26532 e3b56a 3b806c 336e42 c3a07b",
    "one pixel": "674340d612a1ee701f68a1718d8ce3b1 005ab4 005ab4 005ab4 005ab4",
    "one pixel wide": "9edf1d0fce3d89c23c4fdbf24ce81a95 cd0846 cd0846 cd0846 cd0846",
    "one pixel high": "2ce6c4f1cdf0717f161a74f405e76a7d 81e246 81e246 81e246 81e246",
    "RGBA, tall": "73d15e4808d1d2f51ac751ab5e3117a3 d3efa5 798dac f3e2ee c0d971",
    "RGBA, wide": "6b2a3e86b1567295cf0f07bb8d52f285 abdc8d 2f5f9e dcd3d2 cce2b9",
    "gray": "c5c81ed7c4c7b7a27d2f005a08e1c31b acacac 686868 515151 b8b8b8",
    "gray, 16 bits": "42e98e1947c4325516abe7a7993d5f32 909090 525252 909090 b2b2b2",
    "EXIF orientation 1": "5a9c54317d07de8c6f8292f38de1fc27 58b91d 1a5094 552e29 78b742",
    "EXIF orientation 2": "f6f15487fc1e47d009e1bf4cb9406203 2d2d42 d3e12a bcaec1 c37246",
    "EXIF orientation 3": "1b129cb607c12cf1a55d419a0fe2c7af 9bd464 71372f 205fa3 61c226",
    "EXIF orientation 4": "d07b2cf59c3c4fe4783cb5670950b1d0 ba693c a89fb0 d4e686 23841d",
    "EXIF orientation 5": "9102496a7a5c14ba78d89edb152a29bb 58b91d 1a5094 552e28 77b742",
    "EXIF orientation 6": "3ca57b1ccfad2210172c4ab85c284abe ba693c a89fb0 d4e587 23841d",
    "EXIF orientation 7": "5ab46c22d216946d86c95c1fca60546c 9bd464 713730 205fa3 61c226",
    "EXIF orientation 8": "6f02cbf2aff439bc9f5753195e898b2d 2d2d42 d2e12b bcaec1 c37246",
}


def pattern(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    """Gradients and rings in integer arithmetic, which no library rounds: uint8 (height, width, channels)."""
    y, x, channel = np.ogrid[:height, :width, :channels]
    value = (3 + channel) * x + (7 - channel) * y + (x * x + y * y) // (5 + channel) + 90 * channel
    return (value % 256).astype(np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(pattern(width, height))


def transparent(width: int, height: int) -> Image.Image:
    return Image.fromarray(pattern(width, height, channels=4))


def rotated_by_exif(orientation: int) -> Image.Image:
    """A PNG file of 90 x 61 pixels whose EXIF tag asks for a rotation or a mirror image."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture(90, 61).save(file, "PNG", exif=exif)
    return Image.open(file)


def sixteen_bits(width: int, height: int) -> Image.Image:
    wide = pattern(width, height, channels=2).astype(np.uint16)
    return Image.fromarray(wide[..., 0] * 256 + wide[..., 1])


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "32 x 32": lambda: picture(32, 32),
    "square, enlarged": lambda: picture(9, 9),
    "square, reduced": lambda: picture(201, 201),
    "tall": lambda: picture(50, 333),
    "tall, odd difference": lambda: picture(47, 80),
    "tall, 32 wide": lambda: picture(32, 101),
    "tall, very": lambda: picture(70, 5001),
    "wide": lambda: picture(333, 50),
    "wide, odd difference": lambda: picture(80, 47),
    "wide, 32 high": lambda: picture(101, 32),
    "wide, very": lambda: picture(5001, 70),
    "one pixel": lambda: picture(1, 1),
    "one pixel wide": lambda: picture(1, 40),
    "one pixel high": lambda: picture(40, 1),
    "RGBA, tall": lambda: transparent(61, 90),
    "RGBA, wide": lambda: transparent(90, 61),
    "gray": lambda: picture(61, 90).convert("L"),
    "gray, 16 bits": lambda: sixteen_bits(61, 90),
    **{f"EXIF orientation {tag}": lambda tag=tag: rotated_by_exif(tag) for tag in range(1, 9)},
}


def summarize(pixels: NDArray[np.uint8]) -> str:
    diagonal = [0, 10, 21, 31]
    colors = [bytes(pixels[place, place]).hex() for place in diagonal]
    return " ".join([hashlib.sha256(pixels.tobytes()).hexdigest()[:32], *colors])


@pytest.mark.parametrize("name", PICTURES)
def test_golden_pixels(name):
    assert summarize(prepare(PICTURES[name]())) == GOLDEN[name]


def test_a_file_gives_the_pixels_of_its_picture():
    file = io.BytesIO()
    picture(61, 90).save(file, "PNG")
    np.testing.assert_array_equal(read_image(file.getvalue()), prepare(picture(61, 90)))


def test_no_torch_and_no_onnx_runtime_are_loaded():
    """Otherwise an environment of Pillow and NumPy could not check the rule."""
    code = "import sys, toolkit.inference.image; assert not {'torch', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        print(f'    "{name}": "{summarize(prepare(draw()))}",')
