"""The Open Inference Protocol: Triton's own client, and requests that are malformed."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from tests.support.onnx_models import picture_model, saved, tiny_model
from tests.support.serving import Address, served_model, serving
from toolkit import __version__
from toolkit.serving.model import ServedModel
from toolkit.serving.v2 import parse_request

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
URL = "/v2/models/cifar/infer"


@pytest.fixture(scope="module")
def client(server: Address) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def tensor(images: np.ndarray = IMAGES, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("images", list(images.shape), "UINT8").set_data_from_numpy(images, binary_data=binary)


def test_triton_client_finds_server_and_model(client: triton.InferenceServerClient, model: ServedModel) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cifar")
    assert client.is_model_ready("cifar", model.version)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("cifar", "2")
    assert client.get_server_metadata() == {
        "name": "cifar serve",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }
    metadata = client.get_model_metadata("cifar", model.sha256[:12])
    assert metadata == {
        "name": "cifar",
        "versions": [model.sha256[:12]],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        ],
        "parameters": {"sha256": model.sha256, "model": "tiny", "class_names": list(model.session.class_names)},
    }


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_triton_client_infers(
    client: triton.InferenceServerClient, model: ServedModel, binary_input: bool, binary_output: bool | None
) -> None:
    names = ["probabilities", "logits"]
    outputs = binary_output is not None and [
        triton.InferRequestedOutput(name, binary_data=binary_output) for name in names
    ]
    result = client.infer("cifar", [tensor(binary=binary_input)], outputs=outputs or None, request_id="é7")
    expected = dict(zip(names[::-1], model.session.logits_and_probabilities(IMAGES), strict=True))
    for name in names:
        np.testing.assert_array_equal(result.as_numpy(name), expected[name])
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("é7", "cifar", model.version)


def test_triton_client_asks_for_one_output(client: triton.InferenceServerClient) -> None:
    result = client.infer("cifar", [tensor()], outputs=[triton.InferRequestedOutput("logits")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["logits"]


@pytest.mark.parametrize("content", [tiny_model(float_nchw=True), picture_model()], ids=["float-nchw", "picture"])
def test_a_model_of_another_input_form_is_served_with_the_same_input(content: Any, tmp_path: Any) -> None:
    model = served_model(saved(tmp_path, content))
    with serving(model) as server, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        logits = client.infer("cifar", [tensor()]).as_numpy("logits")
    np.testing.assert_array_equal(logits, model.session.logits_and_probabilities(IMAGES)[0])


def test_triton_client_reads_our_errors(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'other'; this server has cifar"):
        client.infer("other", [tensor()])
    with pytest.raises(InferenceServerException, match="there is no version '9'; this server has "):
        client.get_model_metadata("cifar", "9")
    with pytest.raises(InferenceServerException, match="at most 64 images, not 65"):
        client.infer("cifar", [tensor(np.zeros((65, 32, 32, 3), np.uint8))])
    floats = np.zeros((1, 32, 32, 3), np.float32)
    given = triton.InferInput("images", [1, 32, 32, 3], "FP32").set_data_from_numpy(floats)
    with pytest.raises(InferenceServerException, match="the datatype UINT8, not 'images' 'FP32'"):
        client.infer("cifar", [given])
    with pytest.raises(InferenceServerException, match="a body with a Content-Encoding is not accepted"):
        client.infer("cifar", [tensor()], request_compression_algorithm="gzip")
    with pytest.raises(InferenceServerException, match="classification and shared memory are not supported"):
        client.infer("cifar", [tensor()], outputs=[triton.InferRequestedOutput("logits", class_count=3)])


def json_request(**changes: Any) -> dict[str, Any]:
    """A request whose tensor is in JSON; None removes a key of the tensor."""
    changed = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072} | changes
    return {"inputs": [{key: value for key, value in changed.items() if value is not None}]}


@pytest.mark.parametrize("data", [[7] * 3072, [[[[7, 7, 7]] * 32] * 32]])
def test_data_in_json_is_flat_or_nested(server: Address, data: list[Any]) -> None:
    response = httpx.post(f"{server.url}{URL}", json=json_request(data=data))
    assert response.status_code == 200
    logits = response.json()["outputs"][0]
    assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", [1, 10])
    np.testing.assert_allclose(logits["data"], [0.7] * 10, rtol=1e-5)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "the request must be a JSON object"),
        ({}, "inputs must be a list of one tensor, images"),
        ({"inputs": [{}, {}]}, "inputs must be a list of one tensor, images"),
        ({"id": 7}, "id must be a string"),
        (json_request(name="x"), "the input must be images with the datatype UINT8, not 'x' 'UINT8'"),
        (json_request(datatype=None), "the input must be images with the datatype UINT8, not 'images' None"),
        (json_request(shape=[1, 3, 32, 32]), "the shape of images must be [N, 32, 32, 3] with N at least 1, not [1, 3"),
        (json_request(shape=[0, 32, 32, 3], data=[]), "the shape of images must be [N, 32, 32, 3] with N at least 1"),
        (json_request(shape=[True, 32, 32, 3]), "the shape of images must be [N, 32, 32, 3] with N at least 1"),
        (json_request(shape=[-1, 32, 32, 3]), "the shape of images must be [N, 32, 32, 3] with N at least 1"),
        (json_request(shape="x" * 10**5), "the shape of images must be [N, 32, 32, 3] with N at least 1"),
        (json_request(data=None), "data must be 3072 integers"),
        (json_request(data=[0] * 3071), "data must be 3072 integers, flat or nested in the shape [1, 32, 32, 3]"),
        (json_request(data=[[0], [0, 1]]), "data must be 3072 integers"),
        (json_request(data=[0.5] * 3072), "data must be 3072 integers"),
        (json_request(data=[True] * 3072), "data must be 3072 integers"),
        (json_request(data=["a"] * 3072), "data must be 3072 integers"),
        (json_request(data=[10**400] * 3072), "data of the datatype UINT8 must lie between 0 and 255"),
        (json_request(data=[256] * 3072), "data of the datatype UINT8 must lie between 0 and 255"),
        (json_request(data=[-1] * 3072), "data of the datatype UINT8 must lie between 0 and 255"),
        (json_request(parameters=[]), "parameters must be an object"),
        (json_request(parameters={"shared_memory_region": "x"}), "shared memory is not supported"),
        (json_request(parameters={"binary_data_size": 3072}), "a tensor has data or binary_data_size, not both"),
        (json_request(data=None, parameters={"binary_data_size": 3072}), "a UINT8 tensor of shape [1, 32, 32, 3] has"),
        (json_request() | {"outputs": []}, "outputs must be a list of objects"),
        (
            json_request() | {"outputs": [{"name": "x"}]},
            "each of the outputs must be one of logits, probabilities, once",
        ),
        (json_request() | {"outputs": [{"name": "logits"}] * 2}, "each of the outputs must be one of logits"),
        (json_request() | {"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
    ],
)
def test_a_malformed_request_is_400(server: Address, request_: Any, message: str) -> None:
    response = httpx.post(f"{server.url}{URL}", json=request_)
    assert response.status_code == 400
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 10**6, b'{"a":' * 10**5, b"NaN", b"1" * 10**4])
def test_what_is_no_json_is_400(server: Address, content: bytes) -> None:
    response = httpx.post(f"{server.url}{URL}", content=content)
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("length", "tail", "size", "message"),
    [
        ("x", 3072, 3072, "the header Inference-Header-Content-Length must be a number of bytes"),
        ("-1", 3072, 3072, "the header Inference-Header-Content-Length must be a number of bytes"),
        ("999999", 3072, 3072, "Inference-Header-Content-Length is 999999, but the body has "),
        ("5", 3072, 3072, "the request is not valid JSON"),
        (
            None,
            3071,
            3072,
            "a UINT8 tensor of shape [1, 32, 32, 3] has 3072 bytes; binary_data_size is 3072, and 3071 ",
        ),
        (
            None,
            3072,
            3071,
            "a UINT8 tensor of shape [1, 32, 32, 3] has 3072 bytes; binary_data_size is 3071, and 3072 ",
        ),
        (None, 3072, "3072", "a UINT8 tensor of shape [1, 32, 32, 3] has 3072 bytes; binary_data_size is 3072, and "),
        (None, 3072, None, "3072 bytes follow the JSON, but no input has a binary_data_size"),
    ],
)
def test_a_malformed_binary_tensor_is_400(
    server: Address, length: str | None, tail: int, size: Any, message: str
) -> None:
    text = json.dumps(json_request(data=None, parameters={"binary_data_size": size} if size else {})).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(text))}
    response = httpx.post(f"{server.url}{URL}", content=text + bytes(tail), headers=headers)
    if size == "3072":
        message = "a UINT8 tensor of shape [1, 32, 32, 3] has 3072 bytes"
    assert (response.status_code, response.json()["error"][: len(message)]) == (400, message)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
places = st.sampled_from(["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "binary"])


@pytest.mark.hostile
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=places, value=any_json, length=st.none() | st.text(max_size=5), tail=st.binary(max_size=9))
def test_any_value_in_any_place_is_understood_or_refused(
    place: str, value: Any, length: str | None, tail: bytes
) -> None:
    request = json_request()
    if place == "binary":
        request["inputs"][0]["parameters"] = {"binary_data_size": value}
    elif place in ("id", "inputs", "outputs", "parameters"):
        request[place] = value
    else:
        request["inputs"][0][place] = value
    try:
        parsed = parse_request(json.dumps(request).encode() + tail, length, max_images=64)
    except HTTPException as error:
        assert error.status_code in (400, 413)
    else:
        assert parsed.images.shape == (1, 32, 32, 3)
