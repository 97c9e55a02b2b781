"""How hosts meet, agree and end: several processes, without JAX."""

import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mrcnn_jax.errors import TRY_AGAIN, UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.hosts.line import Line
from mrcnn_jax.hosts.place import Place, find
from mrcnn_jax.hosts.roll_call import Everywhere, meet

VERSIONS = {"mrcnn_jax": "1", "jax": "0.12"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def try_to_meet(*hosts: tuple[int, int, dict], wait: float = 1.0) -> list:
    """What `meet` gives or raises on each host: (index, count, versions)."""
    address = f"127.0.0.1:{free_port()}"

    def one(host):
        index, count, versions = host
        try:
            return meet(Place(address, count, index), versions, wait)
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(one, hosts))


def test_hosts_meet_and_know_each_other():
    first, *others = try_to_meet(*((index, 3, VERSIONS) for index in range(3)), wait=20.0)
    assert sorted(first.lines) == [1, 2]
    assert all(sorted(other.lines) == [0] for other in others)
    assert {meeting.service for meeting in (first, *others)} == {first.service}
    assert all(meeting.names == (socket.gethostname(),) * 3 for meeting in (first, *others))
    others[1].lines[0].send({"value": 7})
    assert first.lines[2].receive() == {"value": 7}
    for line in (line for meeting in (first, *others) for line in meeting.lines.values()):
        line.close()


@pytest.mark.parametrize(
    ("hosts", "line"),
    [
        (((0, 3, VERSIONS), (2, 3, VERSIONS)), "1 of 3 hosts did not come within 1 seconds (--process-id 1)"),
        (((0, 3, VERSIONS), (1, 3, VERSIONS), (1, 3, VERSIONS)), "two hosts have --process-id=1"),
        (((0, 2, VERSIONS), (1, 3, VERSIONS)), "--num-processes differs: 2 on host 0"),
        (((0, 2, VERSIONS), (1, 2, {**VERSIONS, "jax": "0.10"})), "versions differ: jax 0.12 on host 0"),
    ],
)
def test_every_host_is_told_what_is_wrong(hosts, line):
    errors = try_to_meet(*hosts)
    assert all(isinstance(error, Everywhere) for error in errors)
    assert {str(error) for error in errors} == {str(errors[0])}
    assert line in str(errors[0])


def test_a_first_host_that_does_not_answer():
    (error,) = try_to_meet((1, 2, VERSIONS), wait=0.5)
    assert "the first host does not answer at 127.0.0.1:" in str(error)
    assert "start the command there with --process-id=0" in str(error)


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as other:
        place = Place(f"127.0.0.1:{other.getsockname()[1]}", 2, 0)
        with pytest.raises(UserError, match=r"cannot listen at port \d+ .*another run or program uses it"):
            meet(place, VERSIONS, 0.5)


def test_something_else_at_the_coordinators_address():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            connection, _ = other.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="is not the first host of this run, or it has ended"):
            meet(Place(f"127.0.0.1:{other.getsockname()[1]}", 2, 1), VERSIONS, 5.0)
        thread.join()


def test_strangers_are_turned_away_and_counted():
    place = Place(f"127.0.0.1:{free_port()}", 2, 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meet, place, VERSIONS, 2.0)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 7 + b"\2{}", b"\xff" * 8):
            while True:
                try:
                    stranger = socket.create_connection(place.address, timeout=5)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            stranger.sendall(said)
            stranger.close()
        with pytest.raises(Everywhere, match="3 connections were of something else"):
            waiting.result()


def test_a_message_that_is_too_long_is_not_read():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as there:
        here, _ = listener.accept()
        there.sendall((2**40).to_bytes(8, "big"))
        with pytest.raises(ValueError, match=r"a message of 1,099,511,627,776 bytes"):
            Line(here).receive(longest=100)
        here.close()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("node1:8476", None, 1), "--num-processes missing"),
        ((None, 2, None), "--coordinator, --process-id missing"),
        (("node1", 2, 0), "--coordinator=node1 is not HOST:PORT"),
        (("node1:99999", 2, 0), "--coordinator=node1:99999 is not HOST:PORT"),
        (("node1:8476", 2, 2), "--process-id=2 of --num-processes=2: hosts are numbered from 0 to 1"),
    ],
)
def test_flags_that_make_no_sense(flags, line):
    with pytest.raises(UserError, match=line):
        find(*flags)


def test_a_place_is_found_in_what_slurm_says(monkeypatch):
    assert find() is None
    for key, value in {"JOB_ID": "70", "STEP_NODELIST": "tpu[007-010]", "PROCID": "3", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    place = find()
    assert (place.address[0], place.count, place.index) == ("tpu007", 4, 3)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find() is None
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(UserError, match="the scheduler does not tell which hosts belong to this run"):
        find()


def test_one_host_is_alone_with_itself():
    assert together.first()
    assert not together.several()
    assert together.gather({"a": 1}) == [{"a": 1}]
    assert together.share(3) == 3
    together.same({"a": 1}, "nothing")
    together.all_well(True, "fine")
    with pytest.raises(UserError, match="this host is ill"):
        together.all_well(False, "{hosts} is ill")


def run_hosts(count: int, body: str) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of hosts that join, run `body` (which knows `index`) and take leave."""
    code = """
        import os, signal, sys, time
        from mrcnn_jax.errors import UserError
        from mrcnn_jax.hosts import together
        from mrcnn_jax.hosts.place import Place
        from mrcnn_jax.hosts.roll_call import Everywhere
        index = int(sys.argv[1])
        try:
            together.join(Place(sys.argv[2], int(sys.argv[3]), index), {}, 30)
        {body}
            together.leave()
        except UserError as error:
            together.fail(str(error), 2, tell=not isinstance(error, Everywhere))
    """
    code = textwrap.dedent(code).replace("{body}", textwrap.indent(textwrap.dedent(body), "    "))
    address = f"127.0.0.1:{free_port()}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(index), address, str(count)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    told = [host.communicate(timeout=60) for host in hosts]
    return [(host.returncode, *texts) for host, texts in zip(hosts, told, strict=True)]


def test_values_are_gathered_and_shared():
    ended = run_hosts(3, "values = together.gather({'of': index}); print(values, together.share(len(values)))")
    everybody = [{"of": index} for index in range(3)]
    assert ended == [(0, f"{everybody} 3\n", ""), (0, "[] 3\n", ""), (0, "[] 3\n", "")]


def test_a_value_that_differs_is_told_by_all():
    ended = run_hosts(3, "together.same({'config.seed': int(index == 2), 'config.name': 'a'}, 'choose one')")
    name = socket.gethostname()
    line = f"mrcnn: error: config.seed differs: 0 on host 0 ({name}), 1 on host 2 ({name}): choose one\n"
    assert ended == [(2, "", line)] * 3


def test_a_host_that_is_not_well_is_named_by_all():
    ended = run_hosts(3, "together.all_well(index != 1, '{hosts} cannot see it')")
    line = f"mrcnn: error: host 1 ({socket.gethostname()}) cannot see it\n"
    assert ended == [(2, "", line)] * 3


@pytest.mark.parametrize("signalled", [(0,), (2,), (1, 2)])
def test_a_signal_to_one_host_stops_all_at_the_same_count(signalled):
    body = f"""
        from mrcnn_jax.interruption import Interrupted, Interruption
        count = 0
        try:
            with Interruption(together.stop()) as interruption:
                while count < 100_000:
                    # Hosts are not equally fast, and not all are told at the same time.
                    time.sleep(0.001 * (index + 1))
                    if index in {signalled} and count == 20 * index:
                        signal.raise_signal(signal.SIGTERM)
                    with interruption.held():
                        count += 1
        except Interrupted:
            print(count)
    """
    ended = run_hosts(3, body)
    counts = {int(said) for _, said, _ in ended}
    assert [status for status, _, _ in ended] == [0] * 3
    assert len(counts) == 1
    assert 20 * min(signalled) < counts.pop() < 100_000


@pytest.mark.parametrize("index", [0, 2])
def test_what_fails_on_one_host_ends_all(index):
    ended = run_hosts(3, f"if index == {index}: raise UserError('a.jpg cannot be read')\ntime.sleep(50)")
    for host, (status, _, told) in enumerate(ended):
        place = "" if host == index else f"host {index} ({socket.gethostname()}): "
        assert (status, told) == (2, f"mrcnn: error: {place}a.jpg cannot be read\n")


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_is_killed_ends_all(index):
    began = time.monotonic()
    ended = run_hosts(3, f"if index == {index}: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(50)")
    assert time.monotonic() - began < 20
    for host, (status, _, told) in enumerate(ended):
        if host == index:
            assert status == -9
        else:
            assert status == TRY_AGAIN
            assert f"host {index} ({socket.gethostname()}) is gone" in told
            assert told.count("\n") == 1


def test_a_run_that_stands_still_shows_its_threads_and_ends_all(tmp_path):
    file = tmp_path / "stall.txt"
    body = f"""
        from pathlib import Path
        from mrcnn_jax.hosts.stall import Watch
        def a_collective_that_never_ends(): time.sleep(50)
        with Watch(0.01 if index else 10, Path({str(file)!r})) as watch:
            watch.alive("step 7")
            a_collective_that_never_ends()
    """
    ended = run_hosts(2, body)
    assert [status for status, _, _ in ended] == [TRY_AGAIN] * 2
    assert "a_collective_that_never_ends" in file.read_text()
    assert "a_collective_that_never_ends" in ended[1][2]
    assert "nothing was done for 0.01 minutes after step 7" in ended[1][2]
    assert f"host 1 ({socket.gethostname()}): nothing was done" in ended[0][2]
