"""Who may import whom, read from the sources; and what a started command has really loaded."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import ROOT

BOTTOM = ("errors", "files", "reporting")
ALLOWED = {  # room -> the rooms and modules of toolkit/ (or `models`) that it may import; each may import itself
    "models": (),
    "toolkit/errors.py": (),
    "toolkit/reporting.py": (),
    "toolkit/files.py": ("errors",),
    "toolkit/interrupt.py": (),
    "toolkit/cores.py": (),
    "toolkit/device.py": ("errors", "cores"),
    "toolkit/processes.py": ("errors",),
    "toolkit/inference": (*BOTTOM, "cores", "processes"),  # many pictures are predicted by several processes
    "toolkit/serving": (*BOTTOM, "cores", "inference"),
    "toolkit/recipes": ("models", *BOTTOM),
    "toolkit/data": (*BOTTOM, "cores", "inference.image"),
    "toolkit/runs": ("models", *BOTTOM, "recipes", "data"),
    "toolkit/evaluation": (*BOTTOM, "device", "inference", "data", "runs"),
    "toolkit/training": ("models", *BOTTOM, "interrupt", "cores", "device", "recipes", "data", "runs", "evaluation"),
    "toolkit/deploy": ("models", *BOTTOM, "inference", "recipes", "data", "runs", "evaluation"),
    "toolkit/cluster": (*BOTTOM, "cores", "device", "interrupt", "processes", "inference", "data", "runs", "training"),
    "toolkit/doctor.py": (*BOTTOM, "inference", "data"),
    "toolkit/display.py": ("models", *BOTTOM, "recipes"),
    "toolkit/command_line.py": (*BOTTOM, "interrupt", "cores", "recipes"),
    "toolkit/options.py": ("recipes",),
    "toolkit/demo.py": (),
}
EVERYTHING = {"toolkit/bench", "toolkit/weights"}  # `bench` and cli.py may import everything


def list_imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, except for type checkers alone."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def list_files(part: str) -> list[Path]:
    return [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room):
    itself = room.removesuffix(".py").replace("/", ".")
    allowed = [itself, *(name if name == "models" else f"toolkit.{name}" for name in ALLOWED[room])]
    files = list_files(room)
    assert files
    for path in files:
        ours = {name for name in list_imports(path) if name.split(".")[0] in ("toolkit", "models", "cli")}
        for name in ours - {"toolkit.__version__"}:
            assert any(f"{name}.".startswith(f"{each}.") for each in allowed), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_every_room_has_its_rule():
    rooms = {f"toolkit/{path.name}" for path in (ROOT / "toolkit").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"toolkit/__init__.py", "toolkit/__main__.py", "toolkit/__pycache__"}
    assert rooms == (ALLOWED.keys() - {"models"}) | EVERYTHING


def test_inference_imports_no_heavy_library():
    for path in list_files("toolkit/inference"):
        top_level = {name.split(".")[0] for name in list_imports(path)}
        assert not top_level & {"torch", "torchvision", "onnx", "rich", "matplotlib", "ray"}, path


def test_every_file_says_its_subject_first():
    for path in [
        ROOT / "cli.py",
        *list_files("toolkit"),
        *list_files("models"),
        *list_files("tests"),
        *list_files("examples"),
        *list_files("results"),
    ]:
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
        "try: cli.app()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert not any(m.startswith(('toolkit.training', 'toolkit.deploy')) for m in sys.modules)"
    )


@pytest.mark.parametrize("more", [[], ["--out", "results"]], ids=["stdout", "--out"])
def test_garbage_is_collected_during_prediction(more, tmp_path):
    """`cifar predict` starts collection itself, once its modules are loaded."""
    code = (
        "import gc, sys\nfrom toolkit.inference import paths, pipeline\n"
        "def expand(paths):\n    assert gc.isenabled()\n    sys.exit(7)\n"
        f"paths.expand = pipeline.expand = expand\nsys.argv = {['cifar', 'predict', 'sky.png', *more]!r}\n"
        "import cli; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 7


def test_garbage_is_collected_during_other_commands():
    code = (
        "import gc, sys, typer\nfrom toolkit.command_line import command, run_app\napp = typer.Typer()\n"
        "def show():\n    print(gc.isenabled())\n"
        "command(app)(show); sys.argv = ['x']; run_app(app)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "True\n"


def test_predict_registers_no_exit_handler_that_matters(tmp_path):
    """`cifar predict` ends without calling them (`toolkit.command_line.skip_cleanup`)."""
    from PIL import Image

    Image.new("RGB", (32, 32), "skyblue").save(tmp_path / "sky.png")
    run_python(
        "import atexit, sys; registered = []\n"
        "atexit.register = lambda function, *args, **kwargs: registered.append(function.__module__)\n"
        f"sys.argv = ['cifar', 'predict', {str(tmp_path / 'sky.png')!r}]; import cli\n"
        "try: cli.app()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert set(registered) <= {'logging', 'PIL._imaging'}, registered"  # close log files; free memory
    )


def run_python(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_onnxruntimes_own_models_do_not_stand_in_for_ours(tmp_path):
    """onnxruntime.quantization puts its folder `transformers` on the path, in which there are `models` too."""
    code = (
        "import sys, toolkit.deploy\n"
        "names = list(sys.modules)\n"
        "assert names.index('models') < names.index('onnxruntime.quantization')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True)
