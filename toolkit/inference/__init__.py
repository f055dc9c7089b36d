"""Prediction from an ONNX file with ONNX Runtime, NumPy and Pillow; nothing here imports torch.

Names are loaded on first use, so that the picture rule (`toolkit.inference.image`) needs Pillow and NumPy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.files import as_text, escape
    from toolkit.inference.classifier import Classifier
    from toolkit.inference.image import prepare, read_image
    from toolkit.inference.model_file import find_model
    from toolkit.inference.paths import Failure
    from toolkit.inference.pipeline import Prediction
    from toolkit.inference.session import PROVIDERS, Session, open_model

_MODULES = {
    "PROVIDERS": "toolkit.inference.session",
    "Classifier": "toolkit.inference.classifier",
    "Failure": "toolkit.inference.paths",
    "Prediction": "toolkit.inference.pipeline",
    "Session": "toolkit.inference.session",
    "as_text": "toolkit.files",
    "escape": "toolkit.files",
    "find_model": "toolkit.inference.model_file",
    "open_model": "toolkit.inference.session",
    "prepare": "toolkit.inference.image",
    "read_image": "toolkit.inference.image",
}

__all__ = [
    "PROVIDERS",
    "Classifier",
    "Failure",
    "Prediction",
    "Session",
    "as_text",
    "escape",
    "find_model",
    "open_model",
    "prepare",
    "read_image",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
