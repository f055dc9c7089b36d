"""The web page: a model in one HTML file that runs in any browser, or the same page asking the server that sent it."""

from toolkit.serving.page.model import PageModel, read_page_model
from toolkit.serving.page.render import WrittenPage, render_page, write_page

__all__ = ["PageModel", "WrittenPage", "read_page_model", "render_page", "write_page"]
