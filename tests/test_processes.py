"""A process that calls functions for another: answers, errors, death."""

import math
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.support.jobs import die, divide_by_zero
from tests.support.serving import wait_until
from tests.support.sources import ROOT
from toolkit.errors import UsageError
from toolkit.inference.session import open_model
from toolkit.processes import Process, ProcessDied


@pytest.fixture
def process():
    process = Process()
    yield process
    process.stop()


def test_answers_and_errors_come_back(process):
    assert process.call(math.sqrt, 4.0) == 2.0
    with pytest.raises(ZeroDivisionError, match="by zero"):
        process.call(divide_by_zero)
    with pytest.raises(UsageError, match="unknown provider 'x'"):
        process.call(open_model, "m.onnx", provider="x")
    assert process.call(os.getpid) == process.pid != os.getpid()


def test_what_a_function_prints_does_not_mix_with_the_answers(process):
    assert process.call(print, "text") is None
    assert process.call(math.sqrt, 9.0) == 3.0


def test_a_killed_process_is_an_error_that_says_so(process):
    with pytest.raises(ProcessDied, match=f"process {process.pid} was killed by SIGKILL"):
        process.call(die)
    with pytest.raises(ProcessDied):
        process.call(math.sqrt, 4.0)


def test_a_process_that_ends_by_itself_gives_its_last_line():
    process = Process()
    with pytest.raises(ProcessDied, match="exit code 3"):
        process.call(os._exit, 3)
    process.stop()


def test_stopping_ends_a_call_in_another_thread(process):
    errors = []

    def call():
        try:
            process.call(time.sleep, 60)
        except ProcessDied as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.1)
    process.stop()
    thread.join(10)
    assert len(errors) == 1


def test_the_environment_is_extended():
    process = Process({"CIFAR_TEST": "1"})
    assert process.call(os.getenv, "CIFAR_TEST") == "1"
    process.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_it_ends_with_its_owner_even_during_a_call(tmp_path):
    code = (
        "import sys, threading; from toolkit.processes import Process; import time\n"
        "p = Process(); p.call(len, ''); print(p.pid, flush=True)\n"
        "p.call(time.sleep, 60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_script_without_a_guard_is_not_imported_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import math\nfrom toolkit.processes import Process\nprint(Process().call(math.sqrt, 4.0))\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "2.0\n"
