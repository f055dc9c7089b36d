"""The model over HTTP: `cifar serve`, an ASGI application on Starlette and uvicorn. Needs the extra `serve`."""

from collections.abc import Callable

from toolkit.errors import UsageError


def serve(
    model: str | None, *, provider: str, host: str, port: int, workers: int, announce: Callable[[str], None]
) -> None:
    """Serve the model until SIGTERM or Ctrl-C, then finish the accepted requests; see `toolkit.serving.server.serve`.

    Raises:
        UsageError: the extra `serve` is not installed, or an option is out of range.
        ToolkitError: the model cannot be opened, or the address is not free.
    """
    try:
        from toolkit.serving import server
    except ModuleNotFoundError as error:
        if (error.name or "toolkit").split(".")[0] == "toolkit":
            raise
        raise UsageError(
            f'`cifar serve` needs {error.name}: install the extra with `pip install "cifar[serve]"`'
        ) from error
    server.serve(model, provider=provider, host=host, port=port, workers=workers, announce=announce)
