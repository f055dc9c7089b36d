"""Who may import whom, read from the sources; and what a started command has really loaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BOTTOM = {  # `toolkit`: the version
    "toolkit", "toolkit.errors", "toolkit.classes", "toolkit.cores", "toolkit.files", "toolkit.names",
    "toolkit.regular_file", "toolkit.timing",
}  # fmt: skip
ALLOWED = {  # part -> what of ours it may import, by prefix; each may import itself
    "models": {"models"},
    "toolkit/errors.py": set(),
    "toolkit/classes.py": set(),
    "toolkit/cores.py": set(),
    "toolkit/files.py": {"toolkit.errors"},
    "toolkit/names.py": set(),
    "toolkit/regular_file.py": {"toolkit.errors", "toolkit.names"},
    "toolkit/timing.py": {"toolkit.errors"},
    "toolkit/inference": {
        f"toolkit.{name}" for name in ("errors", "classes", "cores", "names", "regular_file", "timing", "inference")
    },
    "toolkit/training": {"models", *BOTTOM, "toolkit.training"},
    "toolkit/deploy": {"models", *BOTTOM, "toolkit.training", "toolkit.inference", "toolkit.deploy"},
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(part: str) -> list[Path]:
    return [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("part", ALLOWED)
def test_parts_import_only_what_they_may(part):
    files = files_of(part)
    assert files
    for path in files:
        for name in imports_of(path):
            if name.split(".")[0] in ("toolkit", "models", "cli"):
                allowed = any(
                    name == a or (name.startswith(a + ".") and (a != "toolkit" or name == "toolkit.__version__"))
                    for a in ALLOWED[part]
                )
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_inference_imports_no_heavy_library():
    for path in files_of("toolkit/inference"):
        top_level = {name.split(".")[0] for name in imports_of(path)}
        assert not top_level & {"torch", "torchvision", "onnx", "rich", "matplotlib"}, path


def test_every_file_says_its_subject_first():
    for path in [ROOT / "cli.py", *files_of("toolkit"), *files_of("models"), *files_of("tests"), *files_of("examples")]:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, path
        assert docstring.splitlines()[0], path


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["train", "--help"], ["--version"]])
def test_help_loads_no_torch(arguments):
    check = f"import sys; sys.argv = ['cifar', *{arguments!r}]; import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    check += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    run_python(check)


def test_predict_runs_without_torch(tmp_path):
    """In a process in which importing torch fails, a picture is predicted with the shipped model."""
    from PIL import Image

    Image.new("RGB", (32, 32), "skyblue").save(tmp_path / "sky.png")
    run_python(
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        f"sys.argv = ['cifar', 'predict', {str(tmp_path / 'sky.png')!r}]; import cli\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert not any(m.startswith(('toolkit.training', 'toolkit.deploy')) for m in sys.modules)"
    )


def run_python(code: str) -> None:
    import subprocess

    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_onnxruntimes_own_models_do_not_stand_in_for_ours(tmp_path):
    """onnxruntime.quantization puts its folder `transformers` on the path, in which there are `models` too."""
    code = (
        "import sys, toolkit.deploy\n"
        "names = list(sys.modules)\n"
        "assert names.index('models') < names.index('onnxruntime.quantization')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True)
