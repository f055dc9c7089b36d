"""The served model: opened once from a private copy, and named by its SHA-256."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import escape
from toolkit.inference import Failure, Prediction, Session, open_model
from toolkit.inference.image import read_image
from toolkit.inference.model_file import read_model
from toolkit.inference.pipeline import predict_decoded


@dataclass(frozen=True)
class ModelCopy:
    """A private copy of a model file, which all workers of a server open, including replacements.

    Attributes:
        path: the copy.
        sha256: of its contents.
        provider: as `open_model` takes it.
    """

    path: Path
    sha256: str
    provider: str


@dataclass(frozen=True)
class Picture:
    """A picture of a request: the name that the client gave it ("" for none) and the contents of the image file."""

    name: str
    content: bytes


@dataclass(frozen=True)
class ServedModel:
    """An open model. Any number of threads may use it at once.

    Attributes:
        session: the open model; each call uses one processor thread.
        sha256: of the model file.
        version: the first 12 digits of `sha256`, which name this model in the V2 protocol.
    """

    session: Session
    sha256: str

    @property
    def version(self) -> str:
        return self.sha256[:12]

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the file, such as its accuracy; not verified."""
        return self.session.metadata

    def predict(self, picture: Picture, *, top: int, max_pixels: int) -> Prediction | Failure:
        """Decode a picture and run the model on it.

        Raises:
            ToolkitError: the model failed. A bad picture gives a `Failure`.
        """
        try:
            image = read_image(
                picture.content,
                name=escape(picture.name) or None,
                max_pixels=max_pixels,
                resize=not self.session.takes_pictures,
            )
        except ToolkitError as error:
            return Failure(picture.name, str(error))
        return predict_decoded(self.session, [(picture.name, image)], top)[0]


def copy_model(path: str | os.PathLike[str], folder: Path, *, provider: str) -> ModelCopy:
    """Copy the model file into `folder`, so that later changes of the original have no effect.

    Raises:
        ToolkitError: the file cannot be read, or was not written by `cifar export`.
    """
    content = read_model(path)
    copy = folder / "model.onnx"
    copy.write_bytes(content)
    return ModelCopy(copy, hashlib.sha256(content).hexdigest(), provider)


def open_copy(copy: ModelCopy) -> ServedModel:
    """Open the model with one thread per call: requests run in parallel instead.

    Raises:
        UsageError: an unknown provider.
        ToolkitError: the file was not written by `cifar export`, or the provider is not available.
    """
    return ServedModel(open_model(copy.path, provider=copy.provider, threads=1), copy.sha256)
