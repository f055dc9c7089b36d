"""Golden values: weights, logits, exit codes, JSON keys and options stay as recorded in golden.json.

`python -m tests.test_golden --record` records them anew; do so only where a change of results is intended.
"""

import argparse
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner

import cli
from toolkit.deploy.export import export_graph
from toolkit.deploy.quantize import to_fp16, to_int8
from toolkit.device import device_name
from toolkit.training import load_checkpoint

pytestmark = pytest.mark.slow

RECORD = Path(__file__).with_name("golden.json")
SHIPPED = Path(cli.__file__).parent / "toolkit" / "weights"
TRAIN_COUNT = 400  # of the 4,000 drawn training images: two epochs take seconds

OPTIMIZERS = {
    "SGD": ["--optimizer", "SGD", "--learning-rate", "0.02"],
    "Adam": ["--optimizer", "Adam", "--no-nesterov", "--learning-rate", "1e-3"],
    "Muon": ["--optimizer", "Muon", "--no-nesterov", "--learning-rate", "0.03"],
}

# Two float32 programs that sum in another order differ by about 1e-5 in logits near 10; int8 may round the other way.
LOGIT_TOLERANCE = {"torch": 1e-3, "fp32": 1e-3, "fp16": 0.1, "int8": 0.5}
# Ten steps of training enlarge such differences: the weights were up to 7e-4 apart between AVX-512 and AVX2, and up to
# 9e-4 between one and two threads. So on another machine this finds gross faults alone; the hash finds all.
# Muon enlarges small singular values of a gradient a hundredfold: another order of summation in the pooling layer moved
# its weights by 7e-3.
WEIGHT_TOLERANCE = {"SGD": 3e-3, "Adam": 3e-3, "Muon": 3e-2}

TRAIN = [
    "train",
    "--recipe",
    "demo",
    "--data",
    "demo",
    "--epochs",
    "2",
    "--warmup-epochs",
    "0.5",
    "--val-size",
    "80",
    "--precision",
    "float32",
]

# Ordinary and wrong calls; {run}: a trained run, {model}: its export, {picture}: a PNG file, {folder}: an empty folder.
EXIT_CODES = {
    "--version": 0,
    "--help": 0,
    "predict {picture} --model {model}": 0,
    "predict {picture} --format csv": 0,
    "predict {picture} --format xml": 2,
    "predict {folder}/missing.png": 1,
    "predict {folder}": 1,
    "predict {picture} --model {folder}/missing.onnx": 1,
    "predict": 2,
    "train --optimizer RMSprop --data demo": 2,
    "train --recipe missing --data demo": 2,
    "train --data {folder}": 1,
    "train --device nowhere --data demo": 2,
    "train --resume {run} --data demo": 2,
    "train --resume {folder}/missing --data demo": 1,
    "evaluate {folder}/missing.pt --data demo": 1,
    "evaluate {run}/best.pt --data demo --plot matrix.txt": 2,
    "export {folder}/a.onnx --checkpoint {run}/best.pt --data demo": 3,
    "export {folder}/a.onnx --checkpoint {run}/best.pt --data demo --precision int4": 2,
    "export {folder}/a.onnx --checkpoint {run}/best.pt --data demo --min-accuracy 2": 2,
    "export {folder}/a.onnx --run x --checkpoint {run}/best.pt --data demo": 2,
    "verify {model} --data demo": 3,
    "verify {picture} --data demo": 3,
    "verify {folder}/missing.onnx --data demo": 1,
    "data --data demo": 0,
    "data --data {folder}": 1,
    "models": 0,
    "bench": 2,
    "nonsense": 2,
}

# Commands whose JSON has its keys recorded.
JSON = {
    "evaluate": "evaluate {run}/best.pt --data demo --json",
    "evaluate an ONNX file": "evaluate {model} --data demo --json",
    "export, rejected": "export {folder}/a.onnx --checkpoint {run}/best.pt --data demo --json",
    "verify": "verify {model} --checkpoint {run}/best.pt --data demo --min-accuracy 0.01 --json",
    "predict": "predict {picture} --top 2 --format json",
    "models": "models --json",
    "data": "data --data demo --json",
    "doctor": "doctor --data demo --json",
}


def place() -> dict[str, Any]:
    """Where results repeat bit by bit: the same torch, processor, instruction set and number of threads."""
    return {
        "processor": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def golden_images() -> np.ndarray:
    """Ten images of sixteen random squares each, uint8 (10, 32, 32, 3)."""
    squares = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    return squares.repeat(8, axis=1).repeat(8, axis=2)


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(cli.app, [str(word) for word in arguments], prog_name="cifar")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@contextlib.contextmanager
def few_drawn_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.data.synthetic.TRAIN_COUNT", TRAIN_COUNT)
        yield


class Scene:
    """The files that the calls name: a run for each optimizer, an export, a picture; made by the command line."""

    def __init__(self, folder: Path) -> None:
        self.runs = {name: folder / "runs" / name for name in OPTIMIZERS}
        self.model = folder / "model.onnx"
        self.picture = folder / "picture.png"
        self.json: dict[str, Any] = {}
        Image.fromarray(golden_images()[0]).save(self.picture)
        for name, options in OPTIMIZERS.items():
            result = call(*TRAIN, *options, "--runs", folder / "runs", "--name", name, "--json")
            assert result.exit_code == 0, result.stderr
            self.json["train"] = json.loads(result.stdout)
        checkpoint = self.runs["SGD"] / "best.pt"
        result = call(
            "export", self.model, "--checkpoint", checkpoint, "--data", "demo", "--min-accuracy", "0.01", "--json"
        )
        assert result.exit_code == 0, result.stderr
        self.json["export"] = json.loads(result.stdout)

    def call(self, line: str, folder: Path) -> Any:
        names = {"run": self.runs["SGD"], "model": self.model, "picture": self.picture, "folder": folder}
        return call(*(word.format(**names) for word in line.split()))


def weights_of(run: Path) -> dict[str, Any]:
    """The SHA-256 over all weights, and some of their values."""
    weights = load_checkpoint(run / "last.pt").weights
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    values = torch.cat([value.flatten() for _, value in sorted(weights.items()) if value.is_floating_point()])
    sample = values[:: len(values) // 64]
    return {"sha256": digest.hexdigest(), "values": [round(value, 6) for value in sample.tolist()]}


def all_logits() -> dict[str, list[list[float]]]:
    """Of the shipped checkpoint, (10, 10) each: by PyTorch, and of each precision by ONNX Runtime on the CPU."""
    images = golden_images()
    network = load_checkpoint(SHIPPED / "checkpoint.pt").network()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    with torch.inference_mode():
        found = {"torch": network((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()}
    exact = export_graph(network)
    for precision, model in {"fp32": exact, "fp16": to_fp16(exact), "int8": to_int8(exact, images)[0]}.items():
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found[precision] = session.run(["logits"], {"images": images})[0]
    return {name: [[round(float(value), 5) for value in row] for row in logits] for name, logits in found.items()}


def keys_of(value: Any, prefix: str = "") -> set[str]:
    """All paths of keys in a JSON value, such as "figures.accuracy" and "checks[].name"."""
    if isinstance(value, dict):
        return {f"{prefix}.{k}".lstrip(".") for k in value}.union(
            *(keys_of(v, f"{prefix}.{k}") for k, v in value.items())
        )
    if isinstance(value, list):
        return set[str]().union(*(keys_of(item, f"{prefix}[]") for item in value))
    return set()


def options_of() -> dict[str, list[str]]:
    """The options and arguments of every command."""
    found = {}
    groups: list[tuple[str, Any]] = [("", typer.main.get_command(cli.app))]
    for prefix, group in groups:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append((f"{name} ", command))
            else:
                named = [option for p in command.params for option in [*p.opts, *p.secondary_opts]]
                found[prefix + name] = sorted(named)
    return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with few_drawn_images():
        yield Scene(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(RECORD.read_text())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_after_two_epochs(optimizer, scene, golden):
    found, recorded = weights_of(scene.runs[optimizer]), golden["weights"][optimizer]
    if golden["place"] == place():
        assert found == recorded
    np.testing.assert_allclose(found["values"], recorded["values"], atol=WEIGHT_TOLERANCE[optimizer], rtol=0)


def test_logits_of_the_shipped_checkpoint_and_its_exports(golden):
    found = all_logits()
    assert found.keys() == golden["logits"].keys()
    for name, tolerance in LOGIT_TOLERANCE.items():
        np.testing.assert_allclose(found[name], golden["logits"][name], atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("line", EXIT_CODES)
def test_exit_codes(line, scene, tmp_path):
    result = scene.call(line, tmp_path)
    assert result.exit_code == EXIT_CODES[line], result.stderr


@pytest.mark.parametrize("name", ["train", "export", *JSON])
def test_json_keys(name, scene, tmp_path, golden):
    output = scene.json[name] if name in scene.json else json.loads(scene.call(JSON[name], tmp_path).stdout)
    assert sorted(keys_of(output)) == golden["json_keys"][name]


def test_options_of_every_command(golden):
    assert options_of() == golden["options"]


def record() -> dict[str, Any]:
    with few_drawn_images(), tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        for line, code in EXIT_CODES.items():
            empty = Path(tempfile.mkdtemp(dir=folder))
            if (found := scene.call(line, empty).exit_code) != code:
                print(f"{line}: exit code {found}, not {code}")
        empty = Path(tempfile.mkdtemp(dir=folder))
        outputs = scene.json | {name: json.loads(scene.call(line, empty).stdout) for name, line in JSON.items()}
        return {
            "place": place(),
            "weights": {name: weights_of(run) for name, run in scene.runs.items()},
            "logits": all_logits(),
            "json_keys": {name: sorted(keys_of(output)) for name, output in outputs.items()},
            "options": options_of(),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, nargs="?", const=RECORD, required=True, metavar="FILE")
    os.environ.pop("CIFAR_DATA", None)
    target = parser.parse_args().record
    target.write_text(json.dumps(record()) + "\n")
