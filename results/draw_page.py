"""Draw results/page.png: the web page of the shipped model in Chromium, after the two example pictures.

    python -m results.draw_page

Needs Playwright and Chromium.
"""

import tempfile
from pathlib import Path

from tests.support.browser import Tab, started_browser
from toolkit.serving.page import write_page

PICTURES = sorted(Path("examples/pictures").glob("*.png"))
WIDTH, HEIGHT = 960, 1130


def main() -> None:
    with started_browser() as browser, tempfile.TemporaryDirectory() as folder:
        page = write_page(Path(folder) / "page.html")
        tab = Tab(browser, page.path.as_uri(), viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.choose(*PICTURES)
        tab.page.screenshot(path=Path(__file__).with_name("page.png"))


if __name__ == "__main__":
    main()
