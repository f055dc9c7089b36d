"""Jobs and engines: a job is a function of plain values, an engine runs jobs in processes or on machines.

A job reads its input from shared storage, and renames its complete result there to the final name. It can therefore be
repeated: it runs again after the death of its process or machine, and returns at once if it is finished.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from toolkit.errors import ToolkitError, first_line
from toolkit.reporting import ignore

RETRIES = 3  # of a job whose process or machine died; a job that raises an error is not repeated


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        name: for messages, such as "seed3".
        function: of a module that every machine has.
        arguments: plain values; paths are absolute, on storage that every machine sees.
    """

    name: str
    function: Callable[..., object]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: of the job.
        error: the reason of the failure; None if the result is on disk.
    """

    name: str
    error: str | None = None


Outcomes = Generator[Outcome, None, None]


class Engine(Protocol):
    """Runs jobs, in other processes or on other machines."""

    def run(self, jobs: Iterable[Job], *, on_wait: Callable[[], object] = ignore) -> Outcomes:
        """Yield the outcome of each job as it ends, in any order; a failed job does not stop the others.

        Closing the iterator, or an exception such as KeyboardInterrupt, stops all running jobs.

        Args:
            jobs: consumed as processes become free, so that memory does not grow with their number.
            on_wait: called about once a second.
        """
        ...


def run_job(job: Job) -> Outcome:
    """Run a job in this process; return its outcome, with the error of an exception."""
    try:
        job.function(**job.arguments)
    except ToolkitError as error:
        return Outcome(job.name, str(error))
    except Exception as error:
        return Outcome(job.name, f"{type(error).__name__}: {first_line(error)}")
    return Outcome(job.name)


def describe_failures(failures: list[Outcome], *, of: int, kind: str) -> str:
    """Name the jobs that failed, each with its reason: "2 of 20 seeds failed: seed3 (...); seed7 (...)"."""
    shown = "; ".join(f"{failure.name} ({failure.error})" for failure in failures[:10])
    more = f"; and {len(failures) - 10} more" if len(failures) > 10 else ""
    return f"{len(failures)} of {of:,} {kind} failed: {shown}{more}"
