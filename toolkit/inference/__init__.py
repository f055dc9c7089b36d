"""Prediction from an ONNX file, with ONNX Runtime, NumPy and Pillow alone: nothing here imports torch."""

from toolkit.files import as_text, display
from toolkit.inference.classifier import Classifier
from toolkit.inference.image import prepare, read_image
from toolkit.inference.model_file import find_model
from toolkit.inference.paths import Failure
from toolkit.inference.pipeline import Prediction
from toolkit.inference.session import PROVIDERS, Session, open_model

__all__ = [
    "PROVIDERS",
    "Classifier",
    "Failure",
    "Prediction",
    "Session",
    "as_text",
    "display",
    "find_model",
    "open_model",
    "prepare",
    "read_image",
]
