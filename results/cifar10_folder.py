"""CIFAR-10 written out as a folder of 60,000 PNG files: whether it is read as the same tensors, and how fast; JSON.

    python -m results.cifar10_folder FOLDER > folder-reading.json

CIFAR-10 is found as by `cifar data`; FOLDER is made, and left for trainings (`cifar train --data FOLDER`). The first
reading decodes the files and fills an empty cache folder, the second one takes the decoded pictures from there; each is
a fresh process. Wall time depends on the number of cores and on other programs, processor time on neither.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from toolkit.cores import available_cores
from toolkit.data.dataset import find_data
from toolkit.data.images import Images

READINGS = ("first", "second")


def main(folder: str) -> None:
    root = Path(folder)
    source = find_data()
    parts = {"train": source.train(), "test": source.test()}
    for split, images in parts.items():
        write_pictures(images, root / split, source.class_names)
    with tempfile.TemporaryDirectory() as cache:
        readings = {name: read_in_new_process(root, cache) for name in READINGS}
        os.environ["XDG_CACHE_HOME"] = cache
        read = find_data(folder)
        same = {split: same_set(images, getattr(read, split)()) for split, images in parts.items()}
    about = {"cores": available_cores(), "machine": platform.machine(), "pillow": PIL.__version__}
    load = {"load_average": round(os.getloadavg()[0], 1)}  # of other programs too
    counts = {split: len(images) for split, images in parts.items()}
    same_classes = read.class_names == source.class_names
    found = {"pictures": counts, "same_classes": same_classes, "same_set": same, "findings": read.findings().as_dict()}
    print(json.dumps(about | load | found | {"seconds": readings}, indent=2))


def write_pictures(images: Images, folder: Path, class_names: tuple[str, ...]) -> None:
    """Write each image as `CLASS/NUMBER.png`."""
    for name in class_names:
        (folder / name).mkdir(parents=True)
    pictures = images.images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, 32, 32, 3)
    for number, (picture, label) in enumerate(zip(pictures, images.labels.tolist(), strict=True)):
        Image.fromarray(picture).save(folder / class_names[label] / f"{number:05}.png")


def same_set(first: Images, second: Images) -> bool:
    """Whether both hold the same labeled pictures, in any order."""
    return labeled_pictures(first) == labeled_pictures(second)


def labeled_pictures(images: Images) -> list[tuple[int, bytes]]:
    """Label and bytes of each picture, sorted."""
    return sorted(zip(images.labels.tolist(), (image.tobytes() for image in images.images.numpy()), strict=True))


def read_in_new_process(folder: Path, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "results.cifar10_folder", "--read", str(folder)]
    done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": cache}, stdout=subprocess.PIPE, check=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def read_and_time(folder: str) -> dict[str, Any]:
    """Seconds to find and read the pictures, by the clock and of all threads, imports not counted."""
    start = time.perf_counter(), time.process_time()
    source = find_data(folder)
    source.train(), source.test()
    return {"wall": time.perf_counter() - start[0], "processor": time.process_time() - start[1]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(read_and_time(sys.argv[2])))
    else:
        main(*sys.argv[1:])
