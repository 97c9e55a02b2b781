"""Signals fall between two steps; a second one ends the process at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mrcnn_jax.hosts.stop import Stop
from mrcnn_jax.interruption import Interrupted, Interruption

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_waits_for_the_end_of_what_is_held(number):
    before, steps = [signal.getsignal(each) for each in BOTH], []

    def run():
        with Interruption() as interruption:
            for step in range(3):
                with interruption.held():
                    if step == 1:
                        signal.raise_signal(number)
                    steps.append(step)

    with pytest.raises(Interrupted) as stop:
        run()
    assert steps == [0, 1]
    assert stop.value.signal == number
    assert [signal.getsignal(each) for each in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_raised_where_nothing_is_held(number):
    with Interruption() as interruption:
        with interruption.held():
            pass
        with pytest.raises(Interrupted) as stop:
            signal.raise_signal(number)
    assert stop.value.signal == number


def test_an_error_in_what_is_held_is_not_hidden_and_ends_the_hold():
    with Interruption() as interruption:
        with pytest.raises(ValueError, match="spoilt"), interruption.held():
            raise ValueError("spoilt")
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", BOTH)
def test_the_second_signal_ends_the_process(number):
    code = (
        "import signal, sys; from mrcnn_jax.interruption import Interruption\n"
        "with Interruption() as interruption, interruption.held():\n"
        "    signal.raise_signal(int(sys.argv[1])); print('first', flush=True)\n"
        "    signal.raise_signal(int(sys.argv[1])); print('second', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(int(number))], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-number, "first\n")
    assert done.stderr.strip() == "stopping and saving; once more to end at once, without saving"


def test_a_worker_ends_at_the_second_ctrl_c():
    code = (
        "import signal; from mrcnn_jax.interruption import leave_to_main_process\n"
        "leave_to_main_process()\n"
        "signal.raise_signal(signal.SIGINT); print('first', flush=True)\n"
        "signal.raise_signal(signal.SIGINT); print('second', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "first\n", "")


def test_nothing_is_changed_in_another_thread():
    before, inside = [signal.getsignal(each) for each in BOTH], []

    def note():
        with Interruption() as interruption, interruption.held():
            inside.append([signal.getsignal(each) for each in BOTH])

    thread = threading.Thread(target=note)
    thread.start()
    thread.join()
    assert inside == [before]


class Hosts(Stop):
    """All stop at the third place."""

    def __init__(self):
        self.asked, self.counts = 0, []

    def ask(self):
        self.asked += 1

    def reached(self, count):
        self.counts.append(count)
        return count == 3


def test_several_hosts_stop_where_they_agreed_to():
    hosts = Hosts()
    with Interruption(hosts) as interruption:
        with interruption.held():
            signal.raise_signal(signal.SIGINT)
        assert hosts.asked == 1
        interruption.check()
        with pytest.raises(Interrupted) as stop, interruption.held():
            hosts.counts.append("held to its end")
    assert stop.value.signal == signal.SIGINT
    assert hosts.counts == [1, 2, "held to its end", 3]


def test_hosts_that_got_no_signal_stop_too():
    with Interruption(Hosts()) as interruption:
        interruption.check()
        interruption.check()
        with pytest.raises(Interrupted) as stop:
            interruption.check()
    assert stop.value.signal == signal.SIGTERM


def test_workers_end_with_a_main_process_that_is_killed(tmp_path):
    code = (
        "import multiprocessing, os, signal, sys, time\n"
        "from mrcnn_jax.interruption import leave_to_main_process\n"
        "def work(file):\n"
        "    leave_to_main_process(); open(file, 'w').write(str(os.getpid())); time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=work, args=(sys.argv[1],)).start()\n"
        "    time.sleep(60)\n"
    )
    script, file = tmp_path / "script.py", tmp_path / "worker"
    script.write_text(code)
    main = subprocess.Popen([sys.executable, script, file])
    until = time.monotonic() + 30
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    worker = int(file.read_text())
    os.kill(worker, 0)
    main.kill()
    main.wait()
    while time.monotonic() < until:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlives its main process")
