"""`GET /metrics`, read by Prometheus' own parser."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.onnx_models import saved, tiny_model
from tests.support.serving import Address, picture, served_model, serving, wait_until

PNG = {"content-type": "image/png"}


def samples(server: Address) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0)


def test_requests_pictures_and_seconds_are_counted(model_file, model) -> None:
    with serving(model) as server:
        for content in (picture(), picture(), b"bad"):
            httpx.post(f"{server.url}/predict", content=content, headers=PNG)
        httpx.post(f"{server.url}/predict", files=[("p", picture()), ("p", b"bad")])
        httpx.get(f"{server.url}/made/up/by/a/client")
        wait_until(lambda: len(server.log) == 5)
        found = samples(server)
    assert value(found, "cifar_requests_total", endpoint="predict", status="200") == 3
    assert value(found, "cifar_requests_total", endpoint="predict", status="422") == 1
    assert value(found, "cifar_requests_total", endpoint="none", status="404") == 1
    assert value(found, "cifar_pictures_total", outcome="predicted") == 3
    assert value(found, "cifar_pictures_total", outcome="failed") == 2
    assert value(found, "cifar_request_seconds_count", endpoint="predict") == 4
    assert value(found, "cifar_request_seconds_bucket", endpoint="predict", le="+Inf") == 4
    assert 0 < value(found, "cifar_request_seconds_sum", endpoint="predict") < 60


def test_the_model_is_named_by_its_sha256_and_accuracy(tmp_path) -> None:
    claims = {"class_names": '["a","b","c","d","e","f","g","h","i","j"]', "model": "tiny", "test_accuracy": "0.9230"}
    model = served_model(saved(tmp_path, tiny_model(metadata=claims)))
    with serving(model) as server:
        found = samples(server)
    labels = {"version": model.sha256[:12], "sha256": model.sha256, "model": "tiny"}
    assert value(found, "cifar_model_info", **labels, precision="", toolkit_version="") == 1
    assert value(found, "cifar_model_test_accuracy") == 0.923


def test_an_accuracy_that_is_no_number_is_left_out(tmp_path) -> None:
    claims = {"class_names": '["a","b","c","d","e","f","g","h","i","j"]', "test_accuracy": "nan"}
    with serving(served_model(saved(tmp_path, tiny_model(metadata=claims)))) as server:
        assert not any(name == "cifar_model_test_accuracy" for name, _ in samples(server))
