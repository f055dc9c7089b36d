"""The wheel: built from the checkout, unpacked elsewhere, and used there."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from tests.support.sources import ROOT

pytestmark = pytest.mark.slow

LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.onnx.tmp")


def left_out(folder, names):
    own = {"runs", "data"} if folder == str(ROOT) else set()  # a user's, not the rooms of toolkit/
    return LEFT_OUT(folder, names) | own


PACKAGED = {".py", ".toml", ".typed", ".html", ".css", ".js", ".gz", ".json"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the contents of the wheel, as an installation would lay them out."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "source", ignore=left_out)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(place)]
    done = subprocess.run([*build, str(place / "source")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("cifar-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    shutil.rmtree(place / "source")
    return place / "site"


def run(installed, tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-c", "import cli; cli.main()", *map(str, arguments)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_everything_that_runs_is_in_the_wheel(installed):
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    for part in ("toolkit", "models"):
        sources = {str(p.relative_to(ROOT)) for p in (ROOT / part).rglob("*") if p.suffix in PACKAGED}
        assert sources <= names
    assert {"cli.py", "toolkit/weights/model.onnx", "toolkit/weights/checkpoint.pt"} <= names
    assert "toolkit/serving/page/runtime/LICENSE" in names
    assert not any(name.startswith(("tests", "examples")) for name in names)


def test_predict_and_train_from_the_wheel(installed, tmp_path):
    Image.new("RGB", (40, 32), "skyblue").save(tmp_path / "sky.png")
    done = run(installed, tmp_path, "predict", "sky.png")
    assert done.returncode == 0, done.stderr
    assert f"Model: {installed}" in done.stderr
    done = run(installed, tmp_path, "train", "--recipe", "demo", "--data", "demo", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo-resnet20-seed0" / "summary.json").is_file()
    assert "leaked" not in done.stderr  # libraries that torch brings complain of that as the process ends


def test_another_package_named_models_is_named(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("mine = True\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); import toolkit.training"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {tmp_path}/models/__init__.py is another package named `models`, which Python found before this "
        "toolkit's: run from another folder, or put the toolkit's folder first on sys.path"
    )
