"""`examples/ray_serve.py`: a replica is killed under load, and the service continues."""

import importlib.util
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.support.onnx_models import saved, tiny_model
from tests.support.ray_nodes import SMALL, processes_below
from tests.support.serving import picture, wait_until
from tests.support.sources import ROOT


@pytest.fixture
def url(tmp_path, ray_folder):
    serve = pytest.importorskip("ray.serve", reason='Ray Serve is not installed: pip install "ray[serve]"')
    import ray

    spec = importlib.util.spec_from_file_location("ray_serve", ROOT / "examples" / "ray_serve.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {"worker_niceness": 0}
    ray.init("local", num_cpus=3, log_to_driver=False, _temp_dir=ray_folder, _system_config=settings, **SMALL)
    try:
        example.deploy(str(saved(tmp_path, tiny_model())), replicas=2, port=port)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_a_replica_is_killed_under_load(url):
    answers, refused, lock = [], [], threading.Lock()

    def ask(count):
        for _ in range(count):
            label = predict(url, refused, lock)
            with lock:
                answers.append(label)

    clients = [threading.Thread(target=ask, args=(40,)) for _ in range(4)]
    for client in clients:
        client.start()
    wait_until(lambda: len(answers) > 20, seconds=60)
    before = replica_pids()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    for client in clients:
        client.join(120)
    assert answers == ["airplane"] * 160
    assert len(refused) <= 40  # those that the dead replica had, and retries until it was noticed
    wait_until(lambda: len(replica_pids()) == 2, seconds=60)
    assert before[0] not in replica_pids()
    with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=20) as answer:
        assert answer.status == 200


def predict(url, refused, lock):
    """The label of a red picture, asked for again after an error of the server."""
    for _ in range(100):
        request = urllib.request.Request(f"{url}/predict", picture("red"), {"Content-Type": "image/png"})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)[0]["label"]
        except (urllib.error.HTTPError, ConnectionError) as error:
            with lock:
                refused.append(error)
            time.sleep(0.1)
    raise AssertionError(f"no answer: {refused[-1]}")


def replica_pids():
    return [pid for pid, title in processes_below(os.getpid()) if title.startswith("ray::ServeReplica")]
