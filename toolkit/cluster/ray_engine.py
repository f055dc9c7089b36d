"""The engine `ray`: the machines of a Ray cluster (Ray Core). Needs the extra `cluster`."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from toolkit.cluster.jobs import RETRIES, Job, Outcome, Outcomes, run_job
from toolkit.errors import ToolkitError, UsageError, first_line
from toolkit.files import escape
from toolkit.reporting import ignore

CONNECT_SECONDS = 10.0
IN_FLIGHT = 1000  # jobs submitted to Ray at a time: enough for its scheduler, and bounded in memory


class RayEngine:
    """Runs jobs on a Ray cluster, each with one CPU and a share of a GPU.

    Args:
        address: of a cluster, as `ray.init` takes it; None for $RAY_ADDRESS, then a cluster that was started on this
            machine with `ray start`, else one of this machine alone, which ends with this process.
        num_gpus: share of one GPU that each job uses; 0 for none.
        retries: how often a job is run again after the death of its process or machine.

    Raises:
        UsageError: Ray is not installed.
        ToolkitError: no cluster is reached at the address.
    """

    def __init__(self, address: str | None = None, *, num_gpus: float = 0, retries: int = RETRIES) -> None:
        self._ray = _connect(address)
        self._options: dict[str, float] = {"num_cpus": 1, "num_gpus": num_gpus, "max_retries": retries}

    def run(self, jobs: Iterable[Job], *, on_wait: Callable[[], object] = ignore) -> Outcomes:
        """See `toolkit.cluster.jobs.Engine.run`."""
        ray = self._ray
        run_remotely = ray.remote(**self._options)(run_job)
        remaining = iter(jobs)
        names: dict[Any, str] = {}  # of the submitted jobs
        try:
            while True:
                for job in islice(remaining, IN_FLIGHT - len(names)):
                    names[run_remotely.remote(job)] = job.name
                if not names:
                    return
                done, _ = ray.wait(list(names), num_returns=1, timeout=1)
                on_wait()
                for reference in done:
                    yield self._outcome(reference, names.pop(reference))
        finally:
            for reference in names:
                ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, name: str) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Outcome(name, f"{type(error).__name__}: {first_line(error)}")
        return outcome


def count_gpus(address: str | None) -> float:
    """Count the GPUs of the whole cluster. Raises as `RayEngine`."""
    return float(_connect(address).cluster_resources().get("GPU", 0))


def _connect(address: str | None) -> Any:
    """Connect to the cluster and return the module `ray`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of this machine alone sends no statistics
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(
            f'`--on ray` needs {error.name}: install the extra with `pip install "cifar[cluster]"`'
        ) from error
    if ray.is_initialized():
        return ray
    _require_reachable(address or os.environ.get("RAY_ADDRESS"))  # the order in which Ray looks
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # A cluster of this machine alone needs no dashboard; one that is running keeps its own.
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, and those of gRPC
        raise _unreachable(
            address, error, hint="if it requires a token, set RAY_AUTH_MODE=token and copy ~/.ray/auth_token; "
        ) from error
    finally:
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler ends the process without a message
    return ray


def _require_reachable(address: str | None) -> None:
    """Raise `ToolkitError` if nothing listens at HOST:PORT: Ray would try for minutes, and print each attempt."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception, *, hint: str = "") -> ToolkitError:
    return ToolkitError(
        f"no Ray cluster is reached at {escape(address or 'the default address')}: {first_line(error)}. `ray status` "
        f"on its head shows its state; {hint}`--on local` uses this machine"
    )
