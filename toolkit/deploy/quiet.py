"""Silence for libraries that print, log and warn about their own internals."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Capture stdout and stderr, and suppress logging and warnings; yield the buffer.

    For calls whose result is checked afterwards: stdout stays free for results.
    """
    captured = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(captured), redirect_stderr(captured):
            warnings.simplefilter("ignore")
            yield captured
    finally:
        logging.disable(disabled)
