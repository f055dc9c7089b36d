"""Write the page: template, style, scripts and data in one HTML document, under a Content-Security-Policy."""

import base64
import gzip
import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit import __version__
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.inference.image import MAX_BYTES, MAX_PIXELS
from toolkit.serving.page.model import PageModel, read_page_model

Mode = Literal["embedded", "server"]

FOLDER = Path(__file__).parent
SCRIPTS = ("picture.js", "model.js", "page.js")  # in this order: each uses those before it
RUNTIME_BLOCKS = {"runtime-module": "ort.wasm.bundle.min.mjs", "runtime-wasm": "ort-wasm-simd-threaded.wasm"}


@dataclass(frozen=True)
class WrittenPage:
    """A page on the disk.

    Attributes:
        path: the HTML file.
        size: in bytes.
        model_sha256: of the ONNX file inside.
    """

    path: Path
    size: int
    model_sha256: str


def write_page(path: Path, model: str | os.PathLike[str] | None = None) -> WrittenPage:
    """Write the page with a model inside, by default that of `cifar predict`.

    Raises:
        ToolkitError: there is no model, the file was not written by `cifar export`, or the page cannot be written.
    """
    chosen = read_page_model(model)
    content = render_page(chosen).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return WrittenPage(path, len(content), chosen.sha256)


def render_page(model: PageModel, *, mode: Mode = "embedded") -> str:
    """Return the page as an HTML document; equal arguments give equal documents.

    Args:
        model: the model to show.
        mode: "embedded" puts the model and onnxruntime-web into the page, which then makes no requests;
            "server" leaves them out: the page posts each picture to `predict`, relative to its own address.

    Raises:
        ToolkitError: a file of the runtime is damaged.
    """
    style = _read("page.css")
    scripts = [_read(name) for name in SCRIPTS]
    return _fill(
        _read("template.html"),
        policy=_policy(style, scripts, mode),
        style=f"<style>{style}</style>",
        data=_data_block("page-data", "application/json", _as_json(_page_data(model, mode))),
        blocks="\n".join(_embedded_blocks(model)) if mode == "embedded" else "",
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _fill(template: str, **parts: str) -> str:
    """Replace each {{name}} in one pass, so that inserted text is not searched."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _policy(style: str, scripts: list[str], mode: Mode) -> str:
    """The Content-Security-Policy: only these scripts and this style; the embedded page cannot send requests."""
    sources = [_hash_source(script) for script in scripts]
    if mode == "embedded":
        sources += ["blob:", "'wasm-unsafe-eval'"]  # onnxruntime-web, imported from memory
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(sources),
        "style-src": _hash_source(style),
        "img-src": "data:",  # the icon
        "connect-src": "'none'" if mode == "embedded" else "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page_data(model: PageModel, mode: Mode) -> dict[str, Any]:
    return {
        "mode": mode,
        "version": __version__,
        "input": model.input_format,
        "classes": model.class_names,
        "figures": model.figures(),
        "checks": model.checks(),
        "limits": {"bytes": MAX_BYTES, "pixels": MAX_PIXELS},
        "runtime": {"version": _runtime()["version"], "license": _read("runtime/LICENSE")},
    }


def _as_json(value: Any) -> str:
    """JSON that cannot end the script element around it, whatever text it holds."""
    return json.dumps(value).replace("<", "\\u003c")


def _data_block(name: str, media_type: str, content: str) -> str:
    return f'<script type="{media_type}" id="{name}">{content}</script>'


def _embedded_blocks(model: PageModel) -> list[str]:
    files = _runtime()["files"]
    packed = {block: _packed_runtime_file(name, files[name]["sha256"]) for block, name in RUNTIME_BLOCKS.items()}
    packed["model"] = gzip.compress(model.content, mtime=0)
    return [
        _data_block(block, "application/gzip;base64", base64.b64encode(data).decode()) for block, data in packed.items()
    ]


def _runtime() -> dict[str, Any]:
    described: dict[str, Any] = json.loads(_read("runtime/runtime.json"))
    return described


def _packed_runtime_file(name: str, sha256: str) -> bytes:
    """The gzipped file, after its contents were compared with their recorded SHA-256."""
    packed = (FOLDER / "runtime" / f"{name}.gz").read_bytes()
    try:
        found = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise ToolkitError(f"{name}.gz is damaged ({error}); install the toolkit again") from error
    if found != sha256:
        raise ToolkitError(f"{name}.gz is not the file that runtime.json records; install the toolkit again")
    return packed
