"""`GET /metrics`: counters and the latency histogram, in Prometheus' text format, over all workers."""

import math
import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from toolkit.serving.model import ServedModel

# Where the workers of one server keep their counts. prometheus_client reads it when it is first imported.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The metrics of one process; with `FOLDER_VARIABLE` set, of all processes that share the folder."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model: ServedModel) -> None:
        self._registry = CollectorRegistry()
        shared = FOLDER_VARIABLE in os.environ
        if shared:
            MultiProcessCollector(self._registry)
        else:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
        registry = None if shared else self._registry  # shared counts are read from the folder
        self._requests = Counter("cifar_requests", "Requests answered.", ["endpoint", "status"], registry=registry)
        self._seconds = Histogram(
            "cifar_request_seconds",
            "From a request's head to the end of its response.",
            ["endpoint"],
            buckets=_BUCKETS,
            registry=registry,
        )
        pictures = Counter("cifar_pictures", "Pictures received.", ["outcome"], registry=registry)
        self._predicted, self._failed = pictures.labels("predicted"), pictures.labels("failed")
        _describe(model, registry)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_pictures(self, *, predicted: int, failed: int = 0) -> None:
        self._predicted.inc(predicted)
        self._failed.inc(failed)

    def render(self) -> bytes:
        return generate_latest(self._registry)


def _describe(model: ServedModel, registry: CollectorRegistry | None) -> None:
    """Add gauges for the model: its identity, and the accuracy in its metadata, which `cifar verify` checks."""
    labels = {"version": model.version, "sha256": model.sha256}
    labels |= {key: model.metadata.get(key, "") for key in ("model", "precision", "toolkit_version")}
    info = Gauge("cifar_model_info", "The model served.", list(labels), registry=registry, multiprocess_mode="max")
    info.labels(**labels).set(1)
    accuracy = _accuracy(model)
    if accuracy is not None:
        gauge = Gauge(
            "cifar_model_test_accuracy",
            "Accuracy on the test set, from the metadata of the model file.",
            registry=registry,
            multiprocess_mode="max",
        )
        gauge.set(accuracy)


def _accuracy(model: ServedModel) -> float | None:
    try:
        value = float(model.metadata["test_accuracy"])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None
