"""A browser for each file of tests, and the page of the shipped model in it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Tab, started_browser
from toolkit.inference.model_file import SHIPPED_MODEL
from toolkit.serving.page import PageModel, read_page_model, render_page


@pytest.fixture(scope="session")
def shipped() -> PageModel:
    return read_page_model(SHIPPED_MODEL)


@pytest.fixture(scope="module")  # not longer: while it runs, no other test can run an event loop
def browser() -> Iterator[Any]:
    with started_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """Write the page of a model to the disk and open it from there; options are those of the browser's context."""
    tabs = []

    def open_model(model: PageModel, **options: Any) -> Tab:
        path = tmp_path / f"page{len(tabs)}.html"
        path.write_text(render_page(model), encoding="utf-8")
        tabs.append(Tab(browser, path.as_uri(), **options))
        return tabs[-1]

    yield open_model
    for tab in tabs:
        tab.context.close()
        assert tab.errors == []


@pytest.fixture(scope="module")
def shipped_tab(browser: Any, shipped: PageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """The page of the shipped model, open without a network."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page(shipped), encoding="utf-8")
    tab = Tab(browser, path.as_uri(), offline=True)
    yield tab
    tab.context.close()
    assert tab.errors == []
