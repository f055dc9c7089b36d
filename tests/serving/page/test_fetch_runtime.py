"""onnxruntime-web taken anew from its npm package: what is written, and what is refused."""

import gzip
import hashlib
import io
import json
import tarfile

import pytest

from toolkit.errors import ToolkitError
from toolkit.serving.page import fetch_runtime


@pytest.fixture
def pack(monkeypatch):
    """Put the package that `npm pack` gives in the place of the real one."""

    def use(files):
        def packed(version, folder):
            path = folder / "package.tgz"
            with tarfile.open(path, "w:gz") as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(f"package/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            return path

        monkeypatch.setattr(fetch_runtime, "_pack", packed)

    return use


def package(license="MIT"):
    contents = {f"dist/{name}": name.encode() * 100 for name in fetch_runtime.FILES}
    return {"package.json": json.dumps({"license": license}).encode(), **contents}


def test_files_and_their_checksums_are_written(pack, tmp_path):
    pack(package())
    fetch_runtime.fetch_runtime("9.9.9", tmp_path)
    recorded = json.loads((tmp_path / "runtime.json").read_text())
    assert (recorded["package"], recorded["version"], recorded["license"]) == ("onnxruntime-web", "9.9.9", "MIT")
    for name in fetch_runtime.FILES:
        content = gzip.decompress((tmp_path / f"{name}.gz").read_bytes())
        assert content == name.encode() * 100
        assert recorded["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (package(license="UNLICENSED"), "has the license 'UNLICENSED', not MIT: review it before use"),
        ({"package.json": b'{"license": "MIT"}'}, "has no file dist/ort.wasm.bundle.min.mjs"),
    ],
)
def test_another_package_is_refused_and_nothing_written(pack, tmp_path, files, message):
    pack(files)
    with pytest.raises(ToolkitError, match=message):
        fetch_runtime.fetch_runtime("9.9.9", tmp_path)
    assert list(tmp_path.glob("*.gz")) == []


def test_npm_that_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolkitError, match="npm was not found"):
        fetch_runtime.fetch_runtime("9.9.9", tmp_path)
