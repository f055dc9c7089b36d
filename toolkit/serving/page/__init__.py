"""The web page: one HTML file that runs the model in the browser, or sends pictures to the server that served it."""

from toolkit.serving.page.model import PageModel, read_page_model
from toolkit.serving.page.render import WrittenPage, render_page, write_page

__all__ = ["PageModel", "WrittenPage", "read_page_model", "render_page", "write_page"]
