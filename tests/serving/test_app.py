"""`POST /predict`, `GET /` and what is logged: answers, errors of single pictures, and wrong requests."""

import json
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.onnx_models import picture_model, saved
from tests.support.serving import Address, picture, served_model, serving, wait_until
from toolkit.inference import Classifier, Failure, Prediction
from toolkit.inference.output_format import format_predictions
from toolkit.serving.model import Picture, ServedModel

PNG = {"content-type": "image/png"}


@pytest.mark.parametrize("content_type", ["image/png", "image/x-any; a=b", "application/octet-stream", None])
def test_the_bytes_of_a_picture(server: Address, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = httpx.post(f"{server.url}/predict", content=picture("blue"), headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    [prediction] = response.json()
    assert (prediction["path"], prediction["label"], prediction["index"]) == ("", "bird", 2)
    assert prediction["top"] == [{"label": "bird", "probability": prediction["probability"]}]


def test_a_form_answers_as_cifar_predict_does(server: Address, model_file: Path, tmp_path: Path) -> None:
    files = {}
    for name, color in [("a.png", "red"), ("ü.png", "green"), ("c.png", "blue")]:
        files[name] = picture(color, (40, 36))
        (tmp_path / name).write_bytes(files[name])
    response = httpx.post(f"{server.url}/predict?top=3", files=[("any", (name, files[name])) for name in files])
    paths = [str(tmp_path / name) for name in files]
    predictions = Classifier(model_file, "cpu").predict(paths, top=3)
    expected = json.loads("\n".join(format_predictions(predictions, "json", top=3)))
    assert response.json() == [entry | {"path": name} for entry, name in zip(expected, files, strict=True)]


def test_a_model_of_pictures_answers_the_same(server: Address, tmp_path: Path) -> None:
    content = picture("blue", (70, 50))
    with serving(served_model(saved(tmp_path, picture_model()))) as own:
        answers = [httpx.post(f"{each.url}/predict?top=10", content=content).json() for each in (own, server)]
    assert answers[0] == answers[1]


def test_a_bad_picture_has_its_own_error_and_the_rest_is_predicted(server: Address) -> None:
    files = [("p", ("good.png", picture())), ("p", ("bad.png", b"no picture")), ("p", ("cut.png", picture()[:60]))]
    response = httpx.post(f"{server.url}/predict", files=files)
    assert response.status_code == 200
    good, bad, cut = response.json()
    assert good["label"] == "airplane"
    assert bad == {
        "path": "bad.png",
        "error": "bad.png: not a picture in a known format (PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, PPM); "
        "convert it to PNG or JPEG",
    }
    assert cut.keys() == {"path", "error"}


@pytest.mark.parametrize("content", [b"", b"no picture", picture()[:60]])
def test_one_bad_picture_is_422(server: Address, content: bytes) -> None:
    response = httpx.post(f"{server.url}/predict", content=content, headers=PNG)
    assert response.status_code == 422
    [failure] = response.json()
    assert failure["path"] == ""
    assert failure["error"].startswith("the picture")


def test_names_in_a_form_open_no_file(server: Address, model_file: Path) -> None:
    names = ["/etc/passwd", "../" * 9 + "etc/passwd", str(model_file), "-", "a\x1b[31m\r\n\u202e.png", "x" * 1000]
    response = httpx.post(f"{server.url}/predict", files=[("p", (name, picture("green"))) for name in names])
    assert [result["label"] for result in response.json()] == ["automobile"] * len(names)
    assert [result["path"] for result in response.json()][:4] == names[:4]
    assert len(response.json()[-1]["path"]) == 255


@pytest.mark.parametrize("top", ["0", "11", "-1", "x", "", "1.5", "²", "9" * 5000])
def test_top_out_of_range_is_400(server: Address, top: str) -> None:
    response = httpx.post(f"{server.url}/predict", params={"top": top}, content=picture(), headers=PNG)
    assert response.status_code == 400
    assert response.json() == {"error": "top must be a whole number between 1 and 10, the number of classes"}


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, "Content-Type 'application/x-www-form-urlencoded' is"),
        ({"content-type": "text/html; charset=utf-8"}, "Content-Type 'text/html' is not accepted: send the bytes of"),
        ({"content-type": "image/png", "content-encoding": "gzip"}, "a body with a Content-Encoding is not accepted"),
    ],
)
def test_another_type_is_415(server: Address, headers: dict[str, str], message: str) -> None:
    response = httpx.post(f"{server.url}/predict", content=picture(), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize(
    ("content_type", "content", "message"),
    [
        ("multipart/form-data", b"", "the Content-Type multipart/form-data lacks a boundary"),
        ("multipart/form-data; boundary=x", b"--y\r\n", "the body is not multipart/form-data with the boundary"),
        ("multipart/form-data; boundary=x", b"", "the multipart/form-data ends before its last boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nabc", "the multipart/form-data ends before its last boundary"),
        ("multipart/form-data; boundary=" + "x" * 999, b"", "the body is not multipart/form-data with the boundary"),
        ("multipart/form-data; boundary=x", b"--x--\r\n", "the "),
    ],
)
def test_a_malformed_form_is_400(server: Address, content_type: str, content: bytes, message: str) -> None:
    response = httpx.post(f"{server.url}/predict", content=content, headers={"content-type": content_type})
    assert response.status_code == 400
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/etc/passwd", 404)])
def test_other_paths_and_methods(server: Address, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{server.url}{path}")
    assert response.status_code == status
    assert response.json().keys() == {"error"}


def test_the_page_asks_the_server_and_names_the_model(server: Address, model: ServedModel) -> None:
    response = httpx.get(server.url)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert '"mode": "server"' in response.text
    assert model.sha256 in response.text


def test_each_request_is_logged_as_one_line_of_json(server: Address) -> None:
    httpx.post(f"{server.url}/predict", content=b"bad", headers=PNG)
    wait_until(lambda: server.log and server.last_entry()["path"] == "/predict")
    entry = server.last_entry()
    assert entry.keys() == {"time", "client", "method", "path", "status", "milliseconds"}
    assert (entry["client"], entry["method"], entry["status"]) == ("127.0.0.1", "POST", 422)
    httpx.get(f"{server.url}/%1b%5b31m%0a" + "x" * 5000)
    wait_until(lambda: server.last_entry()["status"] == 404)
    assert server.log[-1].isascii()
    assert server.log[-1].count("\n") == 1
    assert len(server.last_entry()["path"]) == 200


class SlowModel(ServedModel):
    """Each picture takes a fifth of a second, in which no event loop may stand still."""

    def predict(self, picture: Picture, *, top: int, max_pixels: int) -> Prediction | Failure:
        time.sleep(0.2)
        return super().predict(picture, top=top, max_pixels=max_pixels)


def test_a_slow_picture_does_not_keep_other_requests_waiting(model: ServedModel) -> None:
    with serving(SlowModel(model.session, model.sha256), threads=1) as server, httpx.Client() as client:
        slow = threading.Thread(
            target=httpx.post,
            args=(f"{server.url}/predict",),
            kwargs={"files": [("p", picture())] * 5, "timeout": 20},
        )
        slow.start()
        answered = 0
        while slow.is_alive():
            assert client.get(f"{server.url}/v2/health/live").status_code == 200
            answered += 1
        assert answered > 20  # within a second


class FailingModel(ServedModel):
    def predict(self, picture: Picture, *, top: int, max_pixels: int) -> Prediction | Failure:
        raise RuntimeError("/secret/path")


def test_an_internal_error_is_500_and_tells_nothing(model: ServedModel) -> None:
    with serving(FailingModel(model.session, model.sha256)) as server:
        response = httpx.post(f"{server.url}/predict", content=picture(), headers=PNG)
        assert (response.status_code, response.json()) == (500, {"error": "internal server error"})
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        wait_until(lambda: any(json.loads(line)["status"] == 500 for line in server.log))
