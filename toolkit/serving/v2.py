"""The Open Inference Protocol (V2) over HTTP, with binary tensors, for clients of Triton and KServe.

Specification: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md; binary tensors:
github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md. The input is `images`, UINT8
(N, 32, 32, 3), RGB, whatever the input format of the model file.
"""

import json
import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from toolkit import __version__
from toolkit.files import quote
from toolkit.serving.limits import RequestLimits, RequestQueue, refuse_compressed
from toolkit.serving.metrics import Metrics
from toolkit.serving.model import ServedModel

MODEL_NAME = "cifar"
_INPUT, _SHAPE = "images", [32, 32, 3]
_OUTPUTS = ("logits", "probabilities")
_JSON_LENGTH = "inference-header-content-length"  # of the JSON in front of the binary tensors


@dataclass(frozen=True)
class InferenceRequest:
    """A request after its checks.

    Attributes:
        id: echoed in the response; None if the request has none.
        images: uint8 `(N, 32, 32, 3)`.
        outputs: the requested outputs in their order, and whether each is wanted in binary form.
    """

    id: str | None
    images: NDArray[np.uint8]
    outputs: dict[str, bool]


class V2:
    """The endpoints of the protocol, for one model under the name `MODEL_NAME`."""

    def __init__(self, model: ServedModel, limits: RequestLimits, intake: RequestQueue, metrics: Metrics) -> None:
        self._model = model
        self._limits = limits
        self._intake = intake
        self._metrics = metrics

    def routes(self) -> list[Route]:
        routes = [
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.health),
            Route("/v2/health/ready", self.health),
        ]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(path, self.model_metadata),
                Route(f"{path}/ready", self.model_ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
        return routes

    async def health(self, request: Request) -> Response:
        """Return 200: a process opens its model before it answers requests."""
        return Response()

    async def server_metadata(self, request: Request) -> Response:
        return JSONResponse({"name": "cifar serve", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return Response()

    async def model_metadata(self, request: Request) -> Response:
        """Return inputs and outputs; under `parameters` the SHA-256 and the metadata of the file."""
        self._check_model(request)
        session = self._model.session
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1, len(session.class_names)]} for name in _OUTPUTS]
        return JSONResponse(
            {
                "name": MODEL_NAME,
                "versions": [self._model.version],
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": _INPUT, "datatype": "UINT8", "shape": [-1, *_SHAPE]}],
                "outputs": outputs,
                "parameters": {
                    **self._model.metadata,
                    "sha256": self._model.sha256,
                    "class_names": list(session.class_names),
                },
            }
        )

    async def infer(self, request: Request) -> Response:
        """Return both outputs for a tensor of images. Statuses: 200, 400, 404, 408, 413, 415, 503."""
        self._check_model(request)
        refuse_compressed(request)
        json_length = request.headers.get(_JSON_LENGTH)
        async with self._intake.body(request, max_bytes=self._limits.tensor_bytes) as content:
            response, count = await self._intake.run(self._infer, content, json_length)
        self._metrics.count_pictures(predicted=count)
        return response

    def _infer(self, content: bytes, json_length: str | None) -> tuple[Response, int]:
        parsed = parse_request(content, json_length, max_images=self._limits.pictures)
        results = self._model.session.logits_and_probabilities(parsed.images)  # (N, K) each
        arrays = dict(zip(_OUTPUTS, results, strict=True))
        return self._render(parsed, arrays), len(parsed.images)

    def _render(self, request: InferenceRequest, arrays: dict[str, NDArray[np.float32]]) -> Response:
        outputs: list[dict[str, Any]] = []
        binary: list[bytes] = []
        for name, as_binary in request.outputs.items():
            array = arrays[name]
            output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
            if as_binary:
                binary.append(array.astype("<f4", copy=False).tobytes())
                output["parameters"] = {"binary_data_size": len(binary[-1])}
            else:
                output["data"] = array.ravel().tolist()
            outputs.append(output)
        answer = {"model_name": MODEL_NAME, "model_version": self._model.version, "outputs": outputs}
        if request.id is not None:
            answer["id"] = request.id
        text = json.dumps(answer).encode()
        if not binary:
            return Response(text, media_type="application/json")
        headers = {_JSON_LENGTH: str(len(text))}
        return Response(b"".join([text, *binary]), media_type="application/octet-stream", headers=headers)

    def _check_model(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != MODEL_NAME:
            raise HTTPException(404, f"there is no model {quote(name)}; this server has {MODEL_NAME}")
        if version not in (None, self._model.version):
            raise HTTPException(404, f"there is no version {quote(version)}; this server has {self._model.version}")


def parse_request(content: bytes, json_length: str | None, *, max_images: int) -> InferenceRequest:
    """Parse a body: JSON alone or, if a header gives the length of the JSON, JSON followed by binary tensors.

    Raises:
        HTTPException: 400 for a malformed request, 413 for more than `max_images` images.
    """
    split = len(content)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and len(json_length) < 12):
            raise _bad_request("the header Inference-Header-Content-Length must be a number of bytes")
        split = int(json_length)
        if split > len(content):
            raise _bad_request(f"Inference-Header-Content-Length is {split}, but the body has {len(content)} bytes")
    try:
        request = json.loads(content[:split])
    except (ValueError, RecursionError) as error:
        raise _bad_request("the request is not valid JSON") from error
    if not isinstance(request, dict):
        raise _bad_request("the request must be a JSON object")
    identifier = request.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise _bad_request("id must be a string")
    images = _parse_input(request.get("inputs"), memoryview(content)[split:], max_images)
    return InferenceRequest(identifier, images, _parse_outputs(request))


def _parse_input(inputs: Any, binary: memoryview, max_images: int) -> NDArray[np.uint8]:
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise _bad_request(f"inputs must be a list of one tensor, {_INPUT}")
    tensor = inputs[0]
    if tensor.get("name") != _INPUT or tensor.get("datatype") != "UINT8":
        found = f"{quote(tensor.get('name'))} {quote(tensor.get('datatype'))}"
        raise _bad_request(f"the input must be {_INPUT} with the datatype UINT8, not {found}")
    shape = tensor.get("shape")
    if not (
        isinstance(shape, list) and all(type(size) is int for size in shape) and shape[1:] == _SHAPE and shape[0] >= 1
    ):
        raise _bad_request(f"the shape of {_INPUT} must be [N, 32, 32, 3] with N at least 1, not {quote(shape)}")
    if shape[0] > max_images:
        raise HTTPException(413, f"a request may hold at most {max_images} images, not {quote(shape[0])}")
    parameters = _object(tensor, "parameters")
    if "shared_memory_region" in parameters:
        raise _bad_request("shared memory is not supported; send the tensor in the request")
    if "binary_data_size" in parameters:
        if "data" in tensor:
            raise _bad_request("a tensor has data or binary_data_size, not both")
        return _binary_tensor(binary, parameters["binary_data_size"], shape)
    if len(binary):
        raise _bad_request(f"{len(binary)} bytes follow the JSON, but no input has a binary_data_size")
    return _json_tensor(tensor.get("data"), shape)


def _binary_tensor(binary: memoryview, size: Any, shape: list[int]) -> NDArray[np.uint8]:
    expected = math.prod(shape)
    if type(size) is not int or size != expected or len(binary) != expected:
        raise _bad_request(
            f"a UINT8 tensor of shape {shape} has {expected} bytes; binary_data_size is {quote(size)}, and "
            f"{len(binary)} bytes follow the JSON"
        )
    return np.frombuffer(binary, np.uint8).reshape(shape)


def _json_tensor(data: Any, shape: list[int]) -> NDArray[np.uint8]:
    """Convert the elements, a flat or nested list."""
    values = _flatten(data, shape)
    if values is None or set(map(type, values)) != {int}:  # NumPy would pad texts to the length of the longest
        raise _bad_request(f"data must be {math.prod(shape)} integers, flat or nested in the shape {shape}")
    if min(values) < 0 or max(values) > 255:
        raise _bad_request("data of the datatype UINT8 must lie between 0 and 255")
    return np.array(values, np.uint8).reshape(shape)


def _flatten(data: Any, shape: list[int]) -> list[Any] | None:
    """Return the elements of a list that is flat or nested in the shape; None if it does not fit the shape."""
    if not isinstance(data, list):
        return None
    values: list[Any] = data
    if len(values) == shape[0]:
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in values):
                return None
            values = list(chain.from_iterable(values))
    return values if len(values) == math.prod(shape) else None


def _parse_outputs(request: dict[str, Any]) -> dict[str, bool]:
    all_binary = _flag(_object(request, "parameters"), "binary_data_output", False)
    requested = request.get("outputs")
    if requested is None:
        return dict.fromkeys(_OUTPUTS, all_binary)
    if not (isinstance(requested, list) and requested and all(isinstance(output, dict) for output in requested)):
        raise _bad_request("outputs must be a list of objects")
    outputs: dict[str, bool] = {}
    for output in requested:
        name, parameters = output.get("name"), _object(output, "parameters")
        if name not in _OUTPUTS or name in outputs:
            raise _bad_request(f"each of the outputs must be one of {', '.join(_OUTPUTS)}, once, not {quote(name)}")
        if "classification" in parameters or "shared_memory_region" in parameters:
            raise _bad_request("the extensions for classification and shared memory are not supported")
        outputs[name] = _flag(parameters, "binary_data", all_binary)
    return outputs


def _object(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad_request(f"{key} must be an object")
    return value


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise _bad_request(f"{key} must be true or false")
    return value


def _bad_request(message: str) -> HTTPException:
    return HTTPException(400, message)
