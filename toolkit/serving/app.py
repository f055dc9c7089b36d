"""The ASGI application: the routes, and `POST /predict`."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from toolkit.files import as_text, escape
from toolkit.inference import Failure, Prediction
from toolkit.inference.image import count_pixels
from toolkit.inference.output_format import format_predictions
from toolkit.serving.access_log import CLIENT_GONE, AccessLog
from toolkit.serving.limits import RequestLimits, RequestQueue, refuse_compressed
from toolkit.serving.metrics import Metrics
from toolkit.serving.model import Picture, ServedModel
from toolkit.serving.multipart import split_pictures
from toolkit.serving.page.model import PageModel
from toolkit.serving.page.render import render_page
from toolkit.serving.v2 import V2

JSON = "application/json"
_MULTIPART = "multipart/form-data"


def create_app(
    model: ServedModel,
    *,
    threads: int,
    limits: RequestLimits = RequestLimits(),  # noqa: B008  (frozen)
    write_log: Callable[[str], object] | None = None,
) -> ASGIApp:
    """Build the application for an open model.

    Args:
        model: answers all requests.
        threads: pictures that are decoded and classified at once.
        limits: on the size, number and duration of requests.
        write_log: takes the lines of the access log; by default they go to stderr.
    """
    metrics = Metrics(model)
    intake = RequestQueue(limits, threads=threads)
    endpoints = Endpoints(model, limits, intake, metrics)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        intake.close()

    app = Starlette(
        routes=[
            Route("/predict", endpoints.predict, methods=["POST"]),
            Route("/", endpoints.page),
            Route("/metrics", endpoints.metrics),
            *V2(model, limits, intake, metrics).routes(),
        ],
        exception_handlers={
            HTTPException: _refuse,
            ClientDisconnect: _note_disconnect,
            Exception: _report_internal_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # the address of a redirection would hold the Host that the client sent
    return AccessLog(app, metrics, write_log or sys.stderr.write)


class Endpoints:
    """The routes outside the V2 protocol."""

    def __init__(self, model: ServedModel, limits: RequestLimits, intake: RequestQueue, metrics: Metrics) -> None:
        self._model = model
        self._limits = limits
        self._intake = intake
        self._metrics = metrics
        self._page = render_page(PageModel.of(model.session), mode="server")

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.render(), media_type=self._metrics.content_type)

    async def predict(self, request: Request) -> Response:
        """Classify the picture in the body, or each part of a form; the JSON of `cifar predict --format json`.

        Statuses: 200 unless every picture failed, then 422; 400 for a malformed form or `top`; 408, 413, 415, 503.
        """
        top = self._requested_top(request)
        media_type = _check_content_type(request)
        async with self._intake.body(request, max_bytes=self._limits.body_bytes) as content:
            if media_type == _MULTIPART:
                content_type = request.headers["content-type"]
                pictures = await self._intake.run(
                    split_pictures, content, content_type, max_pictures=self._limits.pictures
                )
            else:
                pictures = [Picture("", content)]
            results = await self._classify(pictures, top)
        failed = sum(isinstance(result, Failure) for result in results)
        self._metrics.count_pictures(predicted=len(results) - failed, failed=failed)
        return Response(_as_json(results, top), 422 if failed == len(results) else 200, media_type=JSON)

    async def _classify(self, pictures: list[Picture], top: int) -> list[Prediction | Failure]:
        """Classify each picture as its own job, so that a request with many pictures does not occupy all threads."""
        if len(pictures) == 1:
            return [await self._predict(pictures[0], top)]
        rejected = await self._intake.run(_reject_excess, pictures, self._limits)
        predicted = iter(
            await asyncio.gather(
                *(self._predict(picture, top) for place, picture in enumerate(pictures) if place not in rejected)
            )
        )
        return [rejected[place] if place in rejected else next(predicted) for place in range(len(pictures))]

    async def _predict(self, picture: Picture, top: int) -> Prediction | Failure:
        return await self._intake.run(self._model.predict, picture, top=top, max_pixels=self._limits.pixels)

    def _requested_top(self, request: Request) -> int:
        given = request.query_params.get("top", "1")
        classes = len(self._model.session.class_names)
        if not (given.isascii() and given.isdecimal() and len(given) < 10 and 1 <= int(given) <= classes):
            raise HTTPException(400, f"top must be a whole number between 1 and {classes}, the number of classes")
        return int(given)


def _reject_excess(pictures: list[Picture], limits: RequestLimits) -> dict[int, Failure]:
    """Reject pictures that exceed `total_pixels`; later, smaller ones may still fit. Return failures by position."""
    rejected, total = {}, 0
    for place, picture in enumerate(pictures):
        pixels = count_pixels(picture.content)
        if pixels > limits.pixels:  # refused singly
            continue
        if total + pixels > limits.total_pixels:
            rejected[place] = Failure(
                picture.name,
                f"{escape(picture.name) or 'the picture'}: the pictures of this request have more than "
                f"{limits.total_pixels:,} pixels in total, the limit; send this one in another request",
            )
        else:
            total += pixels
    return rejected


def _check_content_type(request: Request) -> str:
    """Return the media type of a picture or a form; raise 415 for any other, and for a compressed body."""
    refuse_compressed(request)
    given = request.headers.get("content-type", "application/octet-stream")
    media_type = given.partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type in ("application/octet-stream", _MULTIPART):
        return media_type
    raise HTTPException(
        415,
        f"Content-Type {media_type[:100]!r} is not accepted: send the bytes of a picture as image/* or "
        f"application/octet-stream, or several as {_MULTIPART}",
    )


def _as_json(results: list[Prediction | Failure], top: int) -> str:
    return "[" + ",".join(_result_as_json(result, top) for result in results) + "]"


def _result_as_json(result: Prediction | Failure, top: int) -> str:
    if isinstance(result, Failure):
        return json.dumps({"path": as_text(result.path), "error": result.error})
    return next(format_predictions([result], "jsonl", top=top))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    content = json.dumps({"error": error.detail})
    return Response(content, error.status_code, headers=dict(error.headers or {}), media_type=JSON)


async def _note_disconnect(request: Request, error: Exception) -> Response:
    """Return the status for the access log; the client is gone."""
    return Response(status_code=CLIENT_GONE)


async def _report_internal_error(request: Request, error: Exception) -> Response:
    """Return a message without details, which could name files of the server; the traceback goes to stderr."""
    return Response(json.dumps({"error": "internal server error"}), 500, media_type=JSON)
