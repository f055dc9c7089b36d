"""The engine `local`: the processes of this machine."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from toolkit.cluster.jobs import RETRIES, Job, Outcome, Outcomes, run_job
from toolkit.processes import Process, ProcessDied
from toolkit.reporting import ignore


class LocalEngine:
    """Runs jobs in processes of this machine.

    Args:
        processes: how many run at once.
        retries: how often a job is run again after the death of its process.
        threads: processor threads of each process, where the user has not set OMP_NUM_THREADS.
    """

    def __init__(self, processes: int, *, retries: int = RETRIES, threads: int = 1) -> None:
        self._count, self._retries = processes, retries
        self._environment: Mapping[str, str] = (
            {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        )

    def run(self, jobs: Iterable[Job], *, on_wait: Callable[[], object] = ignore) -> Outcomes:
        """See `toolkit.cluster.jobs.Engine.run`."""
        workers = _Workers(self._environment, self._retries)
        remaining = iter(jobs)
        pending: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(self._count, thread_name_prefix="job") as pool:
            try:
                while True:
                    pending |= {pool.submit(workers.run, job) for job in islice(remaining, self._count - len(pending))}
                    if not pending:
                        return
                    done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                    on_wait()
                    yield from (future.result() for future in done)
            finally:
                workers.stop()


class _Workers:
    """One process per thread, started at its first job and replaced if it dies."""

    def __init__(self, environment: Mapping[str, str], retries: int) -> None:
        self._environment, self._retries = environment, retries
        self._own = threading.local()
        self._lock = threading.Lock()
        self._processes: set[Process] = set()
        self._stopped = False

    def run(self, job: Job) -> Outcome:
        died: ProcessDied | None = None
        for _ in range(1 + self._retries):
            process = self._process()
            if process is None:
                return Outcome(job.name, "stopped")
            try:
                return process.call(run_job, job)
            except ProcessDied as error:
                died = error
                self._drop(process)
        return Outcome(job.name, f"{died}, {1 + self._retries} times")

    def stop(self) -> None:
        """Kill all processes, and do not start others."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.stop()

    def _process(self) -> Process | None:
        """The process of this thread, started if necessary; None once stopped."""
        with self._lock:
            if self._stopped:
                return None
            if (process := getattr(self._own, "process", None)) is None:
                process = self._own.process = Process(self._environment)
                self._processes.add(process)
            return process

    def _drop(self, process: Process) -> None:
        with self._lock:
            self._processes.discard(process)
        process.stop()
        self._own.process = None
