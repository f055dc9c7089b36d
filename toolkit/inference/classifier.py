"""`Classifier`, the Python interface: one open model that predicts pictures in any form."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.cores import available_cores
from toolkit.errors import ToolkitError, UsageError
from toolkit.inference import pipeline
from toolkit.inference.model_file import find_model
from toolkit.inference.paths import Failure, PathLike, Source
from toolkit.inference.pipeline import BATCH_SIZE, MAX_WORKERS, Prediction
from toolkit.inference.session import Session, open_model


class Classifier:
    """Predicts the class of pictures. One object may be used by any number of threads at once.

    >>> from toolkit.inference import Classifier
    >>> Classifier().predict(["cat.png"])[0].label
    'cat'

    Args:
        model: an ONNX file written by `cifar export`; by default `$CIFAR_MODEL`, then `model.onnx` in the current
            folder, then the model shipped with the package.
        provider: "auto", "cpu", "cuda" or "tensorrt". Any but "auto" runs as requested or raises.
        threads: processor threads to use; by default the cores available to this process. On the CPU each thread
            decodes pictures and runs the model on its own batch, so a single picture uses one thread; with 32 or
            more, several threads share a batch.

    Raises:
        UsageError: an unknown provider, or fewer than one thread.
        ToolkitError: no model was found, the file was not written by this toolkit, or the provider is not available.
    """

    def __init__(self, model: PathLike | None = None, provider: str = "auto", *, threads: int | None = None) -> None:
        threads = available_cores() if threads is None else threads
        self._workers = max(1, min(threads, MAX_WORKERS))
        self._session = open_model(find_model(model), provider=provider, threads=threads // self._workers)

    @property
    def session(self) -> Session:
        """The open model: its path, provider, class names and metadata."""
        return self._session

    def predict(
        self, images: Source | Iterable[Source], *, batch_size: int = BATCH_SIZE, top: int = 1
    ) -> list[Prediction]:
        """Predict one or more pictures; the results are in the order of the pictures.

        Args:
            images: one picture or several: paths of image files ("-" is standard input), Pillow images, uint8 RGB
                arrays `(H, W, 3)`. An array `(N, H, W, 3)` counts as N pictures.
            batch_size: the largest batch, in pictures; on the CPU at most 16.
            top: how many classes each prediction lists.

        Raises:
            UsageError: an option is out of range, or an array has another type or shape.
            ToolkitError: a picture cannot be read, or the model failed. `stream` continues after a bad picture.
        """
        pipeline.check_options(batch_size=batch_size, top=top, class_count=len(self._session.class_names))
        sources = [images] if isinstance(images, str | os.PathLike | np.ndarray | Image.Image) else images
        predictions = []
        results = pipeline.classify(
            self._session, _single_pictures(sources), workers=self._workers, batch_size=batch_size, top=top
        )
        for result in results:
            if isinstance(result, Failure):
                raise ToolkitError(result.error)
            predictions.append(result)
        return predictions

    def stream(
        self,
        paths: PathLike | Iterable[PathLike],
        *,
        batch_size: int = BATCH_SIZE,
        top: int = 1,
        processes: bool = False,
    ) -> Iterator[Prediction | Failure]:
        """Yield predictions for files, folders and their subfolders, globs and "-" (standard input), batch by batch.

        Results are in the order of the paths. A picture that cannot be read yields a `Failure`. Memory does not grow
        with the number of pictures.

        Args:
            paths: one or several; consumed as needed.
            batch_size: the largest batch, in pictures; on the CPU at most 16, with processes 32.
            top: how many classes each prediction lists.
            processes: on the CPU, start a process for each thread but one if there are thousands of pictures. Each
                process opens the model file itself.

        Raises:
            UsageError: an option is out of range.
            ToolkitError: the model failed.
        """
        several = [paths] if isinstance(paths, str | os.PathLike) else paths
        return pipeline.stream(
            self._session, several, workers=self._workers, batch_size=batch_size, top=top, processes=processes
        )


def _single_pictures(sources: Iterable[Source]) -> Iterator[Source]:
    for source in sources:
        if isinstance(source, np.ndarray):
            yield from _split_array(source)
        else:
            yield source


def _split_array(array: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape[-3:]:
        raise UsageError(
            f"an array of pictures must be uint8 (H, W, 3) or (N, H, W, 3), not {array.dtype} {array.shape}"
        )
    yield from array if array.ndim == 4 else [array]
