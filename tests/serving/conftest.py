"""A tiny model and servers around it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.onnx_models import saved, tiny_model
from tests.support.serving import Address, served_model, serving
from toolkit.serving.model import ServedModel


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), tiny_model())


@pytest.fixture(scope="session")
def model(model_file: Path) -> ServedModel:
    return served_model(model_file)


@pytest.fixture(scope="module")
def server(model: ServedModel) -> Iterator[Address]:
    with serving(model) as address:
        yield address
