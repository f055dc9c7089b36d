"""The script that `cifar bench predict` compares with: NumPy, Pillow and ONNX Runtime, one picture at a time.

Usage: `python bare_script.py model.onnx cat.png ...`. It predicts as `examples/onnx_only.py` does; a folder stands for
the pictures in it.
"""

import json
import os
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, named: list[str]) -> None:
    """Print a line for each picture."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["cifar.class_names"])
    pictures = [
        path
        for name in named
        for path in ([os.path.join(name, file) for file in sorted(os.listdir(name))] if os.path.isdir(name) else [name])
    ]
    for path in pictures:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        pixels = np.array(ImageOps.fit(picture, (32, 32), Image.Resampling.BICUBIC))  # (32, 32, 3), uint8
        probabilities = session.run(["probabilities"], {"images": pixels[np.newaxis]})[0][0]  # (K,)
        print(f"{path}: {names[probabilities.argmax()]} ({probabilities.max():.1%})")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
