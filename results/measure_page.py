"""What `cifar page` costs in a browser, and how far it is from `Classifier`: JSON on stdout.

    python -m results.measure_page FOLDER [MODEL ...] > page.json

FOLDER holds pictures, such as `cifar data --samples FOLDER --per-class 50` writes; models are ONNX files, by default
the shipped one. Needs Playwright and Chromium. Opening the page and classifying a drawn picture of 12 megapixels are
repeated in fresh tabs, and medians are given.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.browser import Tab, started_browser
from toolkit.device import device_name
from toolkit.inference import Classifier, read_image
from toolkit.inference.model_file import SHIPPED_MODEL
from toolkit.serving.page import write_page

ROUNDS = 7
LARGE = (4000, 3000)


def main(folder: str, *models: str) -> None:
    pictures = sorted(path for path in Path(folder).iterdir() if path.is_file())
    with started_browser() as browser, tempfile.TemporaryDirectory() as temporary:
        large = draw_large(Path(temporary))
        measured = [
            measure(browser, Path(model), pictures, large, Path(temporary)) for model in models or [str(SHIPPED_MODEL)]
        ]
        processor = device_name(torch.device("cpu")).rpartition(",")[0]
        about = {"browser": f"Chromium {browser.version}", "cores": os.cpu_count(), "machine": processor}
    load = {
        "load_average": round(os.getloadavg()[0], 1)
    }  # of other programs too: on a busy machine all times are too long
    print(json.dumps(about | load | {"pictures": len(pictures), "rounds": ROUNDS, "models": measured}, indent=2))


def draw_large(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(LARGE, Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=90)
    return folder / "large.jpg"


def measure(browser: Any, model: Path, pictures: list[Path], large: Path, folder: Path) -> dict[str, Any]:
    """One page: its size, seconds until ready, milliseconds per picture, and its logits beside ONNX Runtime's."""
    page = write_page(folder / "page.html", model)
    ready, large_milliseconds = [], []
    for _ in range(ROUNDS):
        tab = Tab(browser, page.path.as_uri())
        ready.append(float(tab.text("#status").split()[2]))
        tab.choose(large)
        large_milliseconds.append(float(tab.text(".times").split()[-2]))
        tab.context.close()
    tab = Tab(browser, page.path.as_uri())
    found = tab.choose(*pictures)
    milliseconds = tab.page.evaluate("results.map((result) => result.milliseconds)")
    tab.context.close()
    images = np.stack([read_image(path) for path in pictures])
    logits, _ = Classifier(model, provider="cpu").session.logits_and_probabilities(images)
    page_logits = np.stack([result.logits for result in found])
    return {
        "model": model.name,
        "page_bytes": page.size,
        "seconds_until_ready": statistics.median(ready),
        "network_milliseconds": round(statistics.median(milliseconds), 2),
        "decode_and_resize_12_megapixels_milliseconds": statistics.median(large_milliseconds),
        "pixels_that_differ": int((np.stack([result.pixels for result in found]) != images).sum()),
        "largest_logit_difference": float(np.abs(page_logits - logits).max()),
        "labels_that_differ": int((page_logits.argmax(1) != logits.argmax(1)).sum()),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
