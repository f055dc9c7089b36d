"""A cache folder for each test."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache folder, and no $CIFAR_DATA."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.delenv("CIFAR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "cifar"
