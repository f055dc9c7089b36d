"""Silence around libraries that print, log and warn about their own inside."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep back what is printed, logged and warned of inside the block, and give it to whom it may help.

    For calls whose result is checked afterwards; standard output must stay free for results.
    """
    said = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(disabled)
