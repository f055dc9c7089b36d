"""The web page in Chromium, driven by Playwright. Tests that need it are skipped where it is missing."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The sandbox does not start for the superuser, whom containers run tests as. The camera is a drawn one.
OPTIONS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextmanager
def started_browser() -> Iterator[Any]:
    """A browser of this machine; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Result:
    """One picture on the page: prepared pixels uint8 (32, 32, 3), logits, (label, probability) pairs, best first."""

    name: str
    error: str | None
    pixels: np.ndarray | None
    logits: np.ndarray | None
    top: list[tuple[str, float]]


class Tab:
    """An open page. `requests` are the addresses of everything that it asked the browser for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address, timeout=120_000)
        self.page.wait_for_selector("#status[data-state]", timeout=120_000)

    def choose(self, *paths: Path) -> list[Result]:
        """Choose files; returns the results of the page once all of them are there."""
        before = self.count()
        self.page.set_input_files("#files", [str(path) for path in paths])
        return self.wait_for(before + len(paths))[before:]

    def count(self) -> int:
        return self.page.evaluate("results.length")

    def wait_for(self, count: int) -> list[Result]:
        self.wait_until(lambda: self.count() >= count)
        return self.results()

    def wait_until(self, holds: Callable[[], object]) -> None:
        """Playwright's own wait for a function needs `eval`, which the page's policy forbids."""
        deadline = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < deadline, "waited for two minutes"
            self.page.wait_for_timeout(10)

    def results(self) -> list[Result]:
        plain = "results.map((r) => ({...r, pixels: r.pixels && [...r.pixels], logits: r.logits && [...r.logits]}))"
        return [_result(found) for found in self.page.evaluate(plain)]

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


def _result(found: dict[str, Any]) -> Result:
    pixels, logits = found.get("pixels"), found.get("logits")
    return Result(
        found["name"],
        found.get("error"),
        None if pixels is None else np.array(pixels, np.uint8).reshape(32, 32, 3),
        None if logits is None else np.array(logits, np.float32),
        [(each["label"], each["probability"]) for each in found.get("top", [])],
    )
