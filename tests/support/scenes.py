"""Drawn pictures of any size, in every file format that browsers read."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ORIENTATION = 0x0112  # the EXIF tag


def scene(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Smooth colors with noise, a disc and a diagonal line: edges and textures at every size."""
    generator = np.random.default_rng(seed)
    colors = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(colors.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + generator.integers(-12, 13, smooth.shape)
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((width // 4, height // 4, width // 2, height // 2), fill=(200, 30, 40))
    pen.line((0, 0, width, height), width=max(1, width // 60))
    return image


def save_formats(folder: Path) -> dict[str, Path]:
    """One file for each way in which browsers and Pillow might decode differently, by name."""
    picture = scene(300, 300)
    faded = picture.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(picture.size))
    few_colors = [scene(160, 160, seed=seed).quantize(64) for seed in range(3)]
    on_its_side = Image.Exif()
    on_its_side[ORIENTATION] = 6
    folder.mkdir(parents=True, exist_ok=True)
    saved = {
        "rgb.png": (picture, {}),
        "alpha.png": (faded, {}),
        "palette.png": (picture.quantize(64), {"transparency": 3}),
        "gray16.png": (Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), {}),
        "photo.jpg": (picture, {"quality": 80}),
        "rotated.jpg": (scene(240, 240), {"exif": on_its_side}),
        "cmyk.jpg": (picture.convert("CMYK"), {"quality": 90}),
        "lossless.webp": (picture, {"lossless": True}),
        "lossy.webp": (picture, {"quality": 80}),
        "alpha.webp": (faded, {}),
        "animated.gif": (few_colors[0], {"save_all": True, "append_images": few_colors[1:], "duration": 100}),
        "plain.bmp": (picture, {}),
    }
    for name, (image, options) in saved.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in saved}
