"""Copy onnxruntime-web from its npm package into runtime/: gzipped files, and runtime.json with their SHA-256.

Run with a version, `python -m toolkit.serving.page.fetch_runtime 1.30.0`; needs npm. The package comes without a
license text: runtime/LICENSE is from the ONNX Runtime repository.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import replacing

RUNTIME = Path(__file__).parent / "runtime"
PACKAGE = "onnxruntime-web"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
LICENSE = "MIT"


def fetch_runtime(version: str, folder: Path = RUNTIME) -> None:
    """Write `FILES` of the package's `version`, gzipped, and runtime.json into `folder`.

    Raises:
        ToolkitError: npm is missing or failed, or the package has another license or lacks a file.
    """
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(_pack(version, Path(temporary))) as archive:
        found = json.loads(_member(archive, "package.json"))["license"]
        if found != LICENSE:
            raise ToolkitError(f"{PACKAGE} {version} has the license {found!r}, not {LICENSE}: review it before use")
        contents = {name: _member(archive, f"dist/{name}") for name in FILES}
    for name, content in contents.items():
        with replacing(folder / f"{name}.gz") as path:
            path.write_bytes(gzip.compress(content, mtime=0))
    described = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    text = json.dumps({"package": PACKAGE, "version": version, "license": LICENSE, "files": described}, indent=2)
    with replacing(folder / "runtime.json") as path:
        path.write_text(text + "\n")


def _pack(version: str, folder: Path) -> Path:
    try:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{PACKAGE}@{version}"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ToolkitError("npm was not found; it comes with Node.js") from error
    except subprocess.CalledProcessError as error:
        raise ToolkitError(f"npm pack {PACKAGE}@{version} failed: {error.stderr.strip()[:300]}") from error
    return next(folder.glob("*.tgz"))


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(f"package/{name}")
    except KeyError:
        file = None
    if file is None:
        raise ToolkitError(f"the package {PACKAGE} has no file {name}")
    return file.read()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m toolkit.serving.page.fetch_runtime VERSION")
    try:
        fetch_runtime(sys.argv[1])
    except ToolkitError as error:
        sys.exit(f"error: {error}")
