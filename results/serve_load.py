"""`cifar serve` and a plain FastAPI application under load, by wrk on the same machine -> results/serve-load.json.

    python results/serve_load.py [--seconds 60] [--soak 600] [--only loads|soak] [--out results/serve-load.json]

Needs wrk (`apt-get install wrk`), `pip install ".[serve]" fastapi`, Linux, and a machine that does nothing else. Each
server runs in a process of its own, one at a time, and in turn for each number of clients. All clients keep their
connection open and send the same picture, a 32x32 PNG of noise. The soak sends one bad picture in ten. `--only`
measures one of the two and keeps the other from the JSON.
"""

import argparse
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolkit.cores import available_cores  # noqa: E402
from toolkit.inference import find_model  # noqa: E402

CLIENTS = (1, 16, 256)
SERVERS = ("cifar", "fastapi")
WARM_UP_SECONDS = 3

# Lua, for wrk.
HEAD = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "image/png"
"""
ONE_BODY = """
wrk.body = io.open("{picture}", "rb"):read("*a")
"""
BAD_ONES = """
local sent, good, bad = 0, nil, nil
function init()
  good = wrk.format(nil, nil, nil, io.open("{picture}", "rb"):read("*a"))
  bad = wrk.format(nil, nil, nil, "no picture")
end
function request()
  sent = sent + 1
  return sent % 10 == 0 and bad or good
end
"""
REPORT = """
function done(summary, latency)
  local e = summary.errors
  print(string.format("RESULT [%d, %d, %d, %d, %d, %d, %d, %.0f, %.0f]", summary.requests, summary.duration,
    e.connect, e.read, e.write, e.timeout, e.status, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """One run of wrk.

    Attributes:
        server: one of `SERVERS`.
        clients: connections, each with one request at a time.
        pictures_per_second: answered requests, bad pictures included.
        p50_ms, p99_ms: latency.
        requests: answered.
        lost: connections and requests that failed or waited for more than 10 seconds.
        refused: answers with a status of 400 and above.
        memory_start, memory_end: resident bytes of the server's processes, after the warm-up and at the end.
    """

    server: str
    clients: int
    pictures_per_second: float
    p50_ms: float
    p99_ms: float
    requests: int
    lost: int
    refused: int
    memory_start: int
    memory_end: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="of each load")
    parser.add_argument("--soak", type=int, default=600, metavar="SECONDS", help="of the soak")
    parser.add_argument("--only", choices=("loads", "soak"), help="keep the other from the JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "serve-load.json")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.only else {}
    if options.only != "soak":
        result |= measure_loads(options.seconds)
    if options.only != "loads":
        result |= {"soak": measure_soak(options.soak)}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


def measure_loads(seconds: int) -> dict[str, Any]:
    loads = []
    for clients in CLIENTS:
        for server in SERVERS:
            with running(server) as (process, port):
                loads.append(measure(server, process, port, clients=clients, seconds=seconds))
            print(loads[-1], file=sys.stderr)
    rates = {load.server: load.pictures_per_second for load in loads if load.clients == 16}
    return {
        "picture": "32x32 PNG of noise",
        "cores": available_cores(),
        "libraries": {
            name: version(name) for name in ("starlette", "uvicorn", "httptools", "uvloop", "fastapi", "pillow")
        },
        "seconds": seconds,
        "loads": [dataclasses.asdict(load) for load in loads],
        "speedup_at_16_clients": rates["cifar"] / rates["fastapi"],
    }


def measure_soak(seconds: int) -> dict[str, Any]:
    with running("cifar") as (process, port):
        soak = measure("cifar", process, port, clients=16, seconds=seconds, bad=True)
    print(soak, file=sys.stderr)
    return {"seconds": seconds, "cores": available_cores(), "bad_pictures": "one in ten", **dataclasses.asdict(soak)}


@contextmanager
def running(server: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server's process and its port, once it accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    model = str(find_model())
    command = {
        "cifar": [str(ROOT / "cli.py"), "serve", "--model", model, "--provider", "cpu", "--port", str(port)],
        "fastapi": [str(ROOT / "results" / "serve_fastapi.py"), model, str(port)],
    }[server]
    with tempfile.TemporaryFile("w+") as log:  # the access log of `cifar serve` goes to a file, as in service
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, text=True)
        try:
            wait_for_port(port, process)
            yield process, port
        finally:
            process.terminate()
            process.wait(90)


def wait_for_port(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {process.args}") from None
            time.sleep(0.05)


def measure(
    server: str, process: subprocess.Popen[str], port: int, *, clients: int, seconds: int, bad: bool = False
) -> Load:
    run_wrk(port, clients=clients, seconds=WARM_UP_SECONDS, bad=bad)
    before = resident_bytes(process.pid)
    requests, microseconds, connect, read, write, timeout, status, p50, p99 = run_wrk(
        port, clients=clients, seconds=seconds, bad=bad
    )
    return Load(
        server=server,
        clients=clients,
        pictures_per_second=requests / (microseconds / 1e6),
        p50_ms=p50 / 1000,
        p99_ms=p99 / 1000,
        requests=requests,
        lost=connect + read + write + timeout,
        refused=status,
        memory_start=before,
        memory_end=resident_bytes(process.pid),
    )


def run_wrk(port: int, *, clients: int, seconds: int, bad: bool) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        picture, script = Path(folder, "noise.png"), Path(folder, "post.lua")
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
        script.write_text(HEAD + (BAD_ONES if bad else ONE_BODY).format(picture=picture) + REPORT)
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/predict"], capture_output=True, text=True, check=True
        )
    found = re.search(r"^RESULT (\[.*\])$", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"wrk printed no result: {done.stdout}{done.stderr}")
    numbers: list[int] = json.loads(found[1])
    return numbers


def resident_bytes(pid: int) -> int:
    """Of a process and of all below it."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return own + sum(map(resident_bytes, children))


if __name__ == "__main__":
    main()
