"""Predict pictures with an exported model, without the toolkit: python onnx_only.py model.onnx cat.png ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, *pictures = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["cifar.class_names"])
for path in pictures:
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    pixels = np.array(ImageOps.fit(picture, (32, 32), Image.Resampling.BICUBIC))  # (32, 32, 3), uint8
    probabilities = session.run(["probabilities"], {"images": pixels[np.newaxis]})[0][0]  # (K,), one per class
    print(f"{path}: {names[probabilities.argmax()]} ({probabilities.max():.1%})")
