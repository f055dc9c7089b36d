"""Serve the model with Ray Serve: python ray_serve.py [--replicas N] [--port P] [--model M]

The replicas answer as `cifar serve` does, on all machines of the cluster that $RAY_ADDRESS names, or on this machine
alone. Ray Serve replaces a replica that dies; requests that it was answering fail with status 500. The limits on a
request's size and number of pictures apply, but those on slow clients do not: Ray has its own HTTP server. Needs
`pip install "ray[serve]" "cifar[serve]"`.
"""

import argparse
import hashlib
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import ray
from ray import serve
from starlette.types import ASGIApp

from toolkit.inference import find_model
from toolkit.inference.model_file import read_model
from toolkit.serving.app import create_app
from toolkit.serving.model import ModelCopy, open_copy


def build_app(content: bytes) -> ASGIApp:
    """Build the application of one replica from the bytes of the model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        model = open_copy(ModelCopy(path, hashlib.sha256(content).hexdigest(), "cpu"))
        return create_app(model, threads=1)


def deploy(model: str | None = None, *, replicas: int = 2, port: int = 8000) -> None:
    """Start the replicas, each on one CPU, and return when they accept requests."""
    content = read_model(find_model(model))
    replica = serve.ingress(lambda: build_app(content))()
    deployment = serve.deployment(name="cifar", num_replicas=replicas, ray_actor_options={"num_cpus": 1})(replica)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(deployment.bind(), name="cifar", route_prefix="/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    deploy(options.model, replicas=options.replicas, port=options.port)
    print(f"Serving at http://127.0.0.1:{options.port}; Ctrl-C stops", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler can end in an abort
    with suppress(KeyboardInterrupt):
        signal.pause()
    serve.shutdown()
    ray.shutdown()
