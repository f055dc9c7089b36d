"""`cifar serve` as a process: options, signals, workers, and a model file that is replaced while it is served."""

import hashlib
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import numpy_helper

from tests.serving.test_metrics import samples, value
from tests.support.onnx_models import saved, tiny_model
from tests.support.serving import Address, Command, cifar_serve, picture, receive, wait_until
from tests.support.sources import ROOT
from toolkit.errors import UsageError
from toolkit.reporting import ignore
from toolkit.serving.server import serve

pytestmark = pytest.mark.slow

PNG = {"content-type": "image/png"}
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def label(url: str, color: str = "red") -> str:
    response = httpx.post(f"{url}/predict", content=picture(color), headers=PNG)
    assert response.status_code == 200
    answer: str = response.json()[0]["label"]
    return answer


def request(content: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def refuses_connections(address: Address) -> bool:
    try:
        address.connect().close()
    except ConnectionRefusedError:
        return True
    return False


@posix
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_accepted_requests_and_refuses_new_ones(
    model_file: Path, workers: int, signal_number: int
) -> None:
    with cifar_serve("--model", model_file, "--workers", workers) as command:
        whole = request(picture())
        with command.address.connect() as accepted:
            accepted.sendall(whole[:-10])  # the head and a part of the body
            assert label(command.address.url) == "airplane"
            command.process.send_signal(signal_number)
            wait_until(lambda: refuses_connections(command.address))
            assert command.process.poll() is None
            accepted.sendall(whole[-10:])
            response = receive(accepted)
            assert response.startswith(b"HTTP/1.1 200 ")
            assert b"\r\nconnection: close\r\n" in response
            assert b'"airplane"' in response
        assert command.process.wait(30) == 0


@posix
@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_of_busy_clients_is_lost_at_sigterm(model_file: Path, workers: int) -> None:
    """Each client sends its next request when it has the answer to the last, until it is told to close."""
    with cifar_serve("--model", model_file, "--workers", workers) as command, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(count_answers, command.address) for _ in range(8)]
        wait_until(lambda: len(command.address.log) > 200)
        assert command.stop() == 0
        assert all(client.result() > 1 for client in clients)


def count_answers(address: Address) -> int:
    """Answers until one says `Connection: close`; a request without an answer is an error."""
    content = request(picture())
    with address.connect() as connection:
        for count in range(1, 10**6):
            connection.sendall(content)
            response = receive(connection)
            assert response.startswith(b"HTTP/1.1 200 "), response
            if b"\r\nconnection: close\r\n" in response:
                return count
    raise AssertionError("the server never stopped")


def turned(folder: Path) -> Path:
    """Another model: it sees in red what the first sees in blue."""
    model = tiny_model()
    weights = numpy_helper.to_array(model.graph.initializer[1])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.roll(weights, 1, axis=1), "weights"))
    return saved(folder, model)


@posix
@pytest.mark.parametrize("workers", [1, 2])
def test_a_replaced_model_is_served_after_a_restart_only(tmp_path: Path, workers: int) -> None:
    path = saved(tmp_path, tiny_model())
    (tmp_path / "new").mkdir()
    new = turned(tmp_path / "new").read_bytes()
    old_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with cifar_serve("--model", path, "--workers", workers) as command:
        assert label(command.address.url) == "airplane"
        path.write_bytes(new)
        if workers == 2:
            replace_worker(command)
        assert {label(command.address.url) for _ in range(20)} == {"airplane"}
        metadata = httpx.get(f"{command.address.url}/v2/models/cifar").json()
        assert metadata["parameters"]["sha256"] == old_sha256
        assert old_sha256 in command.first_line
    with cifar_serve("--model", path) as command:
        assert label(command.address.url) == "bird"
        assert hashlib.sha256(new).hexdigest() in command.first_line


def replace_worker(command: Command) -> None:
    """Kill one worker, and wait until another is there in its place."""
    before = workers_of(command)
    subprocess.run(["kill", "-9", before[0]], check=True)
    wait_until(lambda: len(workers_of(command)) == 2 and before[0] not in workers_of(command))


def workers_of(command: Command) -> list[str]:
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(command.process.pid)], capture_output=True, text=True
    )
    return [line.split()[0] for line in listed.stdout.splitlines() if "multiprocessing.spawn" in line]


@posix
def test_metrics_are_those_of_all_workers(model_file: Path) -> None:
    with cifar_serve("--model", model_file, "--workers", 2) as command:
        for _ in range(40):  # each over a connection of its own
            label(command.address.url)
        wait_until(lambda: len(command.address.log) >= 40)
        for _ in range(5):
            found = samples(command.address)
            assert value(found, "cifar_requests_total", endpoint="predict", status="200") == 40
            assert value(found, "cifar_pictures_total", outcome="predicted") == 40
            assert value(found, "cifar_request_seconds_count", endpoint="predict") == 40
            assert [count for (name, _), count in found.items() if name == "cifar_model_info"] == [1]


def run_serve(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    command_line = ["cifar", "serve", *map(str, arguments)]
    program = f"import sys; sys.argv = {command_line!r}\n{code}\nimport cli; cli.main()"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["uvicorn", "starlette", "httptools", "prometheus_client", "python_multipart"])
def test_without_the_extra_the_message_names_it(name: str) -> None:
    done = run_serve(code=f"sys.modules[{name!r}] = None")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'install the extra with `pip install "cifar[serve]"`' in done.stderr


def test_a_port_in_use_is_an_error_of_one_line(model_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_serve("--model", model_file, "--port", port)
    assert done.returncode == 1
    message = f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose others with --host and --port"
    assert done.stderr == f"error: {message}\n"


def test_a_port_above_the_largest_is_refused(model_file: Path) -> None:
    with pytest.raises(UsageError, match="the port must lie between 0 and 65535, not 70000"):
        serve(model_file, port=70_000, announce=ignore)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 70, "192.0.2.1"])
def test_an_address_of_another_machine_is_an_error_of_one_line(model_file: Path, host: str) -> None:
    done = run_serve("--model", model_file, "--host", host)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on {host}, port 8000: ")
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_no_model_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(tiny_model(images="x").SerializeToString())
    done = run_serve("--model", path)
    assert done.returncode == 1
    found = "does not have the interface of this toolkit's models. Found: inputs x "
    assert done.stderr.startswith(f"error: {path} {found}")


def test_serving_imports_no_torch() -> None:
    check = (
        "import toolkit.serving.server, sys; assert not {'torch', 'onnx', 'rich', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
