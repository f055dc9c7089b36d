"""The page as a document: what is in it, what its policy allows, and how untrusted text is kept from acting."""

import base64
import dataclasses
import gzip
import hashlib
import json
import re

import pytest

from toolkit.errors import ToolkitError
from toolkit.inference.model_file import SHIPPED_MODEL
from toolkit.serving.page import render, render_page

SCRIPT = re.compile(r"<script(?: type=\"([^\"]*)\" id=\"([^\"]*)\")?>(.*?)</script>", re.DOTALL)


def scripts_of(document):
    return [text for kind, _, text in SCRIPT.findall(document) if not kind]


def blocks_of(document):
    return {name: text for kind, name, text in SCRIPT.findall(document) if kind}


def policy_of(document):
    text = re.search(r'Content-Security-Policy" content="([^"]*)"', document)[1]
    return dict(directive.split(" ", 1) for directive in text.split("; "))


def sha256_source(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_page_holds_model_and_runtime(shipped):
    blocks = blocks_of(render_page(shipped))
    packed = {name: base64.b64decode(blocks[name]) for name in ("model", "runtime-module", "runtime-wasm")}
    assert gzip.decompress(packed["model"]) == SHIPPED_MODEL.read_bytes()
    recorded = json.loads((render.FOLDER / "runtime" / "runtime.json").read_text())["files"]
    for block, name in render.RUNTIME_BLOCKS.items():
        content = gzip.decompress(packed[block])
        assert recorded[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_policy_of_the_embedded_page_allows_its_own_code_and_no_connection(shipped):
    document = render_page(shipped)
    style = re.search(r"<style>(.*?)</style>", document, re.DOTALL)[1]
    hashes = [sha256_source(text) for text in scripts_of(document)]
    assert len(hashes) == 3
    assert policy_of(document) == {
        "default-src": "'none'",
        "script-src": " ".join([*hashes, "blob:", "'wasm-unsafe-eval'"]),
        "style-src": sha256_source(style),
        "img-src": "data:",
        "connect-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_page_for_a_server_holds_no_model_and_connects_to_its_origin_alone(shipped):
    document = render_page(shipped, mode="server")
    assert set(blocks_of(document)) == {"page-data"}
    policy = policy_of(document)
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"].split() == [sha256_source(text) for text in scripts_of(document)]
    assert len(document) < 100_000


def test_document_names_no_address(shipped):
    """Nothing to load from anywhere; the namespace of the icon is a name, not an address."""
    document = render_page(shipped)
    without_blocks = SCRIPT.sub(lambda match: match[3] if not match[1] else "", document)
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w/]*", without_blocks)) <= {"http://www.w3.org/2000/svg"}


def test_same_model_gives_the_same_document(shipped):
    assert render_page(shipped) == render_page(shipped)


def test_names_cannot_end_a_script_or_fill_a_placeholder(shipped):
    names = ("</script><script>alert(1)</script>", "<!--<script>", "{{blocks}}", "\u2028", '"quoted"')
    document = render_page(dataclasses.replace(shipped, class_names=names))
    assert json.loads(blocks_of(document)["page-data"])["classes"] == list(names)
    assert len(scripts_of(document)) == 3
    assert "<" not in blocks_of(document)["page-data"]


def test_figures_and_checks_are_those_of_the_metadata(shipped):
    metadata = {
        "model": "resnet20",
        "precision": "fp32",
        "toolkit_version": "1.2.3",
        "date": "2026-11-24",
        "test_accuracy": "0.9230",
        "test_correct": "9230",
        "test_images": "10000",
        "min_accuracy": "0.91",
        "parity_max_logit_difference": "1.53e-05",
        "parity_differing_labels": "0",
        "data": '{"name": "cifar10"}',
        "checkpoint_sha256": "ab" * 32,
    }
    model = dataclasses.replace(shipped, metadata=metadata, content=b"model")
    assert model.figures() == [
        ("92.30%", "test accuracy, 10,000 images"),
        ("10", "classes"),
        ("0.0 MB", "model file, resnet20, fp32"),
    ]
    assert model.checks() == [
        ("Checked by", "the export gate of cifar 1.2.3"),
        ("Date", "2026-11-24"),
        ("Test accuracy", "92.30% (9,230 of 10,000)"),
        ("Accuracy required", "91.00%"),
        ("Largest logit difference from PyTorch", "1.53e-05"),
        ("Labels that differ from PyTorch", "0"),
        ("Data", "cifar10"),
        ("Checkpoint SHA-256", "ab" * 32),
        ("Model file SHA-256", hashlib.sha256(b"model").hexdigest()),
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"test_accuracy": "nan", "test_correct": "-1", "test_images": "many", "data": "[" * 100_000},
        {"test_accuracy": "7", "test_correct": "9" * 5000, "data": '{"name": ' + "9" * 5000 + "}"},
        {"test_accuracy": "", "data": "[]", "min_accuracy": "inf"},
    ],
)
def test_metadata_of_any_kind_is_shown_as_not_recorded(shipped, metadata):
    model = dataclasses.replace(shipped, metadata=metadata)
    checks = dict(model.checks())
    assert checks["Test accuracy"] == "not recorded (not recorded of not recorded)"
    assert checks["Date"] == "not recorded"
    assert all(len(value) < 200 for value in checks.values())


def test_damaged_runtime_is_not_written_into_a_page(shipped, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    (folder / "runtime").mkdir(parents=True)
    for path in (*render.FOLDER.glob("*.*"), *(render.FOLDER / "runtime").iterdir()):
        (folder / path.relative_to(render.FOLDER)).write_bytes(path.read_bytes())
    (folder / "runtime" / "ort.wasm.bundle.min.mjs.gz").write_bytes(gzip.compress(b"other"))
    monkeypatch.setattr(render, "FOLDER", folder)
    with pytest.raises(ToolkitError, match="not the file that runtime.json records"):
        render_page(shipped)


def test_command_writes_the_page(cifar, shipped, tmp_path):
    done = cifar("page", tmp_path / "page.html", "--model", SHIPPED_MODEL)
    assert (done.returncode, done.stderr) == (0, "")
    content = (tmp_path / "page.html").read_bytes()
    assert content == render_page(shipped).encode()
    assert done.stdout == f"{tmp_path / 'page.html'}: {len(content) / 1e6:.1f} MB; open it in a browser\n"
    done = cifar("page", tmp_path / "page.html", "--model", SHIPPED_MODEL, "--json")
    assert json.loads(done.stdout) == {
        "path": str(tmp_path / "page.html"),
        "bytes": len(content),
        "model_sha256": hashlib.sha256(SHIPPED_MODEL.read_bytes()).hexdigest(),
    }


def test_command_without_a_model_leaves_the_old_page(cifar, tmp_path):
    (tmp_path / "page.html").write_text("old")
    done = cifar("page", tmp_path / "page.html", "--model", tmp_path / "missing.onnx")
    assert done.returncode == 1
    assert "missing.onnx cannot be opened" in done.stderr
    assert (tmp_path / "page.html").read_text() == "old"
