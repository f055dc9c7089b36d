"""The model of a page: its file, and the figures in the file's metadata."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.files import shorten
from toolkit.inference import Session, find_model, open_model
from toolkit.inference.model_file import read_model

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class PageModel:
    """A model for `render_page`.

    Attributes:
        content: the ONNX file.
        input_format: of its input, as in `Session.input_format`.
        class_names: in the order of its outputs.
        metadata: the file's properties under `cifar.`, without that prefix; untrusted, shown as text only.
    """

    content: bytes
    input_format: str
    class_names: tuple[str, ...]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, session: Session) -> "PageModel":
        """Make the model of a page from an open session; reads the file again.

        Raises:
            ToolkitError: the file cannot be read.
        """
        return cls(read_model(session.path), session.input_format, session.class_names, session.metadata)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def figures(self) -> list[tuple[str, str]]:
        """The figures at the top of the page: (figure, label) each."""
        network = f"{self._format_value('model')}, {self._format_value('precision')}"
        return [
            (self._percentage("test_accuracy"), f"test accuracy, {self._count('test_images')} images"),
            (f"{len(self.class_names):,}", "classes"),
            (f"{len(self.content) / 1e6:.1f} MB", f"model file, {network}"),
        ]

    def checks(self) -> list[tuple[str, str]]:
        """The results of the gate in the file's metadata: (name, value) each."""
        correct, images = self._count("test_correct"), self._count("test_images")
        return [
            ("Checked by", f"the export gate of cifar {self._format_value('toolkit_version')}"),
            ("Date", self._format_value("date")),
            ("Test accuracy", f"{self._percentage('test_accuracy')} ({correct} of {images})"),
            ("Accuracy required", self._percentage("min_accuracy")),
            ("Largest logit difference from PyTorch", self._format_value("parity_max_logit_difference")),
            ("Labels that differ from PyTorch", self._format_value("parity_differing_labels")),
            ("Data", self._data_name()),
            ("Checkpoint SHA-256", self._format_value("checkpoint_sha256")),
            ("Model file SHA-256", self.sha256),
        ]

    def _format_value(self, key: str) -> str:
        return shorten(self.metadata.get(key) or NOT_RECORDED)

    def _percentage(self, key: str) -> str:
        try:
            share = float(self.metadata.get(key, ""))
        except ValueError:
            share = math.nan
        return f"{share:.2%}" if 0 <= share <= 1 else NOT_RECORDED

    def _count(self, key: str) -> str:
        text = self.metadata.get(key, "")
        return f"{int(text):,}" if text.isascii() and text.isdecimal() and len(text) < 16 else NOT_RECORDED

    def _data_name(self) -> str:
        try:
            return shorten(json.loads(self.metadata.get("data", ""))["name"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return NOT_RECORDED


def read_page_model(path: str | os.PathLike[str] | None = None) -> PageModel:
    """Read the model at `path`, by default that of `cifar predict`.

    Raises:
        ToolkitError: there is no model, or the file was not written by `cifar export`.
    """
    return PageModel.of(open_model(find_model(path), provider="cpu", threads=1))
