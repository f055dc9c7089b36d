"""Checks of the machine: a finding for each library, provider and file, as text and as JSON."""

import json
import subprocess
import sys

import pytest

from tests.support.sources import ROOT
from toolkit import doctor
from toolkit.errors import ToolkitError


def test_libraries_provider_and_data_are_found():
    findings = {finding.name: finding for finding in doctor.examine("demo")}
    for name in ("Python", "torch", "torchvision", "onnx", "onnxscript", "ONNX Runtime", "provider cpu", "data"):
        assert findings[name].ok, name
    assert findings["provider cpu"].found == "opens a session"
    assert findings["data"].found.startswith("demo: 4,000 training and 1,000 test images")


def test_a_provider_whose_session_fails_is_reported_with_a_remedy(monkeypatch):
    def fails(content, *, provider):
        raise ToolkitError(f"{provider} could not be opened")

    monkeypatch.setattr("toolkit.inference.session.probe", fails)
    findings = {finding.name: finding for finding in doctor.examine("demo")}
    assert (findings["provider cpu"].ok, findings["provider cuda"].ok) == (False, None)
    assert "onnxruntime-gpu[cuda,cudnn]" in findings["provider cuda"].remedy


def test_missing_data_are_optional_and_name_the_command(tmp_path):
    findings = {finding.name: finding for finding in doctor.examine(str(tmp_path))}
    assert findings["data"].ok is None
    assert findings["data"].remedy == f"cifar data --fetch --data {tmp_path}"


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_on_the_command_line(cifar, flag):
    done = cifar("doctor", "--data", "demo", *flag)
    if flag:
        assert {row["name"] for row in json.loads(done.stdout)} >= {"torch", "provider tensorrt", "shipped model"}
    else:
        assert "ok  provider cpu" in done.stdout


@pytest.mark.parametrize("library", ["torch", "onnx", "onnxruntime", "torchvision"])
def test_a_missing_library_is_a_failed_finding(library):
    """In a process in which importing it fails."""
    code = f"import sys; sys.modules[{library!r}] = None\n"
    code += "from toolkit.doctor import examine; print(*(f.name for f in examine('demo') if f.ok is False), sep='|')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {"torch": "torch", "onnx": "provider cpu", "onnxruntime": "ONNX Runtime", "torchvision": ""}[library]
    assert expected in done.stdout
