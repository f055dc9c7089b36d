"""Jobs on the processes of this machine: errors, deaths and interruptions stay with the job that they struck."""

import itertools
import os
import sys
import time

import pytest

from tests.support.cluster import outcomes, record_processes
from tests.support.jobs import die, divide_by_zero, kill_itself_once, write_line
from toolkit.cluster.jobs import Job, Outcome, describe_failures
from toolkit.cluster.local_engine import LocalEngine

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")


def line_job(folder, name, seconds=0.0):
    return Job(name, write_line, {"path": str(folder / name), "line": name, "seconds": seconds})


def test_jobs_run_and_each_has_its_outcome(tmp_path):
    jobs = [line_job(tmp_path, f"job{number}") for number in range(7)]
    assert outcomes(LocalEngine(2), jobs) == {job.name: Outcome(job.name) for job in jobs}
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == [job.name for job in jobs]


def test_no_jobs():
    assert outcomes(LocalEngine(2), []) == {}


def test_a_job_that_fails_fails_alone(tmp_path):
    jobs = [line_job(tmp_path, "a"), Job("bad", divide_by_zero, {}), line_job(tmp_path, "b")]
    assert outcomes(LocalEngine(1), jobs) == {
        "a": Outcome("a"),
        "bad": Outcome("bad", "ZeroDivisionError: by zero"),
        "b": Outcome("b"),
    }


def test_a_job_whose_process_is_killed_is_run_again(tmp_path):
    jobs = [Job("once", kill_itself_once, {"marker": str(tmp_path / "died")}), line_job(tmp_path, "other")]
    assert outcomes(LocalEngine(2), jobs) == {"once": Outcome("once"), "other": Outcome("other")}


def test_a_job_that_kills_every_process_is_given_up_and_named(tmp_path):
    found = outcomes(LocalEngine(1, retries=1), [Job("deadly", die, {}), line_job(tmp_path, "other")])
    assert found["other"] == Outcome("other")
    assert found["deadly"].error.endswith("was killed by SIGKILL, 2 times")


def test_an_interruption_stops_all_processes_at_once(tmp_path, monkeypatch):
    processes = record_processes(monkeypatch)
    jobs = [line_job(tmp_path, "first"), *(line_job(tmp_path, f"slow{number}", seconds=60) for number in range(5))]
    running = LocalEngine(2).run(jobs)
    assert next(running) == Outcome("first")
    start = time.monotonic()
    running.close()
    assert time.monotonic() - start < 10
    assert len(processes) == 2
    assert all(process._process.poll() is not None for process in processes)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_jobs_are_taken_as_they_can_be_run(tmp_path):
    taken = itertools.count()
    endless = (line_job(tmp_path, f"job{next(taken)}") for _ in itertools.count())
    running = LocalEngine(2).run(endless)
    assert [next(running).error for _ in range(3)] == [None] * 3
    running.close()
    assert next(taken) < 10


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_a_process_has_one_thread_unless_the_user_says_otherwise(monkeypatch, given, expected):
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    processes = record_processes(monkeypatch)
    running = LocalEngine(1).run([Job("a", os.getpid, {}), Job("b", os.getpid, {})])
    next(running)
    assert processes[0].call(os.getenv, "OMP_NUM_THREADS") == expected
    running.close()


def test_failures_are_named_and_counted():
    failures = [Outcome(f"seed{number}", "why") for number in range(12)]
    assert describe_failures(failures[:2], of=20, kind="seeds") == "2 of 20 seeds failed: seed0 (why); seed1 (why)"
    assert describe_failures(failures, of=20, kind="seeds").endswith("; seed9 (why); and 2 more")
