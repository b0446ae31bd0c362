"""The roll call, and what processes tell each other, with threads in place of processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxspec.interruption import PROCESS_LOST, STALLED
from jaxspec.parallel import links as module
from jaxspec.parallel.links import call_roll
from tests.trust.pods import free_port


@pytest.fixture
def roll():
    """Calls the roll of processes, each (index, count), at once: links or what was raised."""
    opened = []

    def call_all(*places, limit_s=20.0):
        address = f"127.0.0.1:{free_port()}"

        def call(place):
            try:
                links = call_roll(address, index=place[0], count=place[1], limit_s=limit_s)
                opened.append(links)
                return links
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(len(places)) as pool:
            return list(pool.map(call, places))

    yield call_all
    on_all(opened, lambda each: each.close())


def connected(port):
    """A connection to a process that is about to listen."""
    until = time.monotonic() + 20.0
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < until, "nobody listens"
            time.sleep(0.05)


def greeted(port, *, index, count):
    """The connection of a process that has said who it is, and will be killed."""
    connection = connected(port)
    greeting = {module._GREETING: 1, "index": index, "count": count, "host": "a"}
    connection.sendall(json.dumps(greeting).encode() + b"\n")
    return connection


def on_all(links, act):
    """What a function gives for the links of each process, called at once."""
    with ThreadPoolExecutor(len(links) or 1) as pool:
        return list(pool.map(act, links))


def test_all_hear_what_all_say(roll):
    links = sorted(roll((2, 3), (0, 3), (1, 3)), key=lambda each: each.index)
    for word in ("a", "b"):
        heard = on_all(links, lambda each, word=word: each.gather([word, each.index]))
        assert heard == [[[word, 0], [word, 1], [word, 2]]] * 3
    assert links[0].name(1) == f"process 1 on {socket.gethostname()}"


@pytest.mark.parametrize("index", [0, 2])
def test_all_hear_that_one_gets_on(roll, index):
    links = sorted(roll((2, 3), (0, 3), (1, 3)), key=lambda each: each.index)
    heard = [threading.Event() for _ in links]
    for each, event in zip(links, heard, strict=True):
        each.on_progress = event.set
    for _ in range(1000):
        links[index].tell_progress()
    others = [event for place, event in enumerate(heard) if place != index]
    assert all(event.wait(10) for event in others)
    assert on_all(links, lambda each: each.gather(each.index)) == [[0, 1, 2]] * 3


def test_who_is_missing_is_named_by_all_that_came(roll):
    started = time.monotonic()
    said = roll((0, 4), (2, 4), limit_s=1.5)
    assert 1 < time.monotonic() - started < 10
    assert said[0] == said[1]
    assert "Joined: 0 (" in said[0] and ", 2 (" in said[0] and "Missing: 1, 3." in said[0]


def test_a_coordinator_that_does_not_answer():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=f"{address} has not answered process 1 within 0.5 sec"):
        call_roll(address, index=1, count=2, limit_s=0.5)


def test_a_host_that_nobody_knows():
    with pytest.raises(ValueError, match="has not answered process 1"):
        call_roll("no-such-host.invalid:8476", index=1, count=2, limit_s=0.1)


def test_something_else_at_the_coordinators_address(monkeypatch):
    monkeypatch.setattr(module, "_OTHERS_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet():
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"SSH-2.0\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ValueError, match="is not process 0 of this run"):
            call_roll(f"127.0.0.1:{other.getsockname()[1]}", index=1, count=2, limit_s=5.0)
        thread.join()


def test_the_service_of_a_run_that_is_ending_is_waited_for():
    address = ("127.0.0.1", free_port())
    named = f"{address[0]}:{address[1]}"
    with ThreadPoolExecutor(2) as pool:
        with socket.create_server(address) as other:
            second = pool.submit(call_roll, named, index=1, count=2, limit_s=20.0)
            for _ in range(2):
                connection, _ = other.accept()
                with connection:
                    connection.sendall(b"PRI * HTTP/2.0\r\n")
        first = pool.submit(call_roll, named, index=0, count=2, limit_s=20.0)
        on_all([first.result(), second.result()], lambda each: each.close())


def test_a_process_that_is_started_again_takes_its_own_place():
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(call_roll, address, index=0, count=3, limit_s=20.0)
        killed = greeted(port, index=1, count=3)
        time.sleep(0.2)
        killed.close()
        others = [
            pool.submit(call_roll, address, index=index, count=3, limit_s=20.0) for index in (1, 2)
        ]
        links = [first.result(), *(other.result() for other in others)]
        assert links[0].hosts[1] == socket.gethostname()
        on_all(links, lambda each: each.close())


def test_a_process_that_was_killed_does_not_complete_the_roll():
    """The last one comes between its end and its second start."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(call_roll, address, index=0, count=3, limit_s=20.0)
        greeted(port, index=1, count=3).close()
        last = pool.submit(call_roll, address, index=2, count=3, limit_s=20.0)
        time.sleep(0.5)
        assert not first.done() and not last.done()
        second = pool.submit(call_roll, address, index=1, count=3, limit_s=20.0)
        on_all([each.result() for each in (first, last, second)], lambda each: each.close())


def test_a_port_that_is_in_use():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on port {port}"):
            call_roll(f"127.0.0.1:{port}", index=0, count=2, limit_s=5.0)


EVERYWHERE = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "listens_at"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("node0", EVERYWHERE)],
)
def test_processes_of_one_host_are_not_heard_outside_of_it(host, listens_at, monkeypatch):
    bound, create = [], socket.create_server

    def record(*where, **options):
        server = create(*where, **options)
        bound.append(server.getsockname()[0])
        return server

    monkeypatch.setattr(socket, "create_server", record)
    with pytest.raises(ValueError, match="Missing: 1"):
        call_roll(f"{host}:{free_port()}", index=0, count=2, limit_s=0.1)
    assert bound == [listens_at]


def test_something_else_that_tries_the_port_is_ignored():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call_roll, f"127.0.0.1:{port}", index=0, count=2, limit_s=20.0)
        probe = connected(port)
        probe.sendall(b"GET / HTTP/1.1\r\n")
        probe.close()
        second = call_roll(f"127.0.0.1:{port}", index=1, count=2, limit_s=20.0)
        on_all([first.result(), second], lambda each: each.close())


def test_two_processes_of_one_number(roll):
    said = roll((0, 3), (1, 3), (1, 3), limit_s=5.0)
    assert all("have both started process 1" in each for each in said)


def test_other_counts_of_processes(roll):
    said = roll((0, 2), (1, 3), limit_s=5.0)
    assert "give all of them the same --processes" in said[0] and said[0] == said[1]


@pytest.fixture
def exits(monkeypatch):
    """The statuses that this program would have ended with."""
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(module, "_GRACE_S", 0.2)
    monkeypatch.setattr(module, "_LAST_S", 0.5)
    return statuses


def test_a_mistake_of_one_process_ends_all_with_its_status_and_words(roll, exits, capfd):
    links = roll((0, 3), (1, 3), (2, 3))
    links[1].end(2, "no data here")
    for each in (links[0], links[2]):
        for reader in each._readers:
            reader.join(5)
    assert exits == [2, 2]
    said = capfd.readouterr().err
    assert said.count(f"because process 1 on {socket.gethostname()} has ended: no data here") == 2


def test_half_a_message_is_a_process_that_is_lost(roll, exits, capfd):
    """It was killed while it sent."""
    links = roll((0, 2), (1, 2))
    connection = links[1]._peers[0]
    connection.sendall(b'{"says": [1, 2')
    connection.shutdown(socket.SHUT_WR)
    links[0]._readers[0].join(10)
    assert exits == [PROCESS_LOST]
    assert "because process 1 on" in capfd.readouterr().err


def test_all_may_find_the_same_mistake(roll, exits):
    links = roll((0, 2), (1, 2))
    on_all(links, lambda each: each.end(2, "the same"))
    time.sleep(0.5)
    assert exits == []


def test_stacks_of_all_are_shown_if_one_has_stalled(roll, exits, capfd):
    links = roll((0, 2), (1, 2))
    links[0].end(STALLED, "no step has ended")
    for reader in links[1]._readers:
        reader.join(5)
    assert exits == [STALLED]
    said = capfd.readouterr().err
    assert "Stacks of process 1" in said and "test_links.py" in said


CALL = (
    "import sys, time; from jaxspec.parallel.links import call_roll\n"
    "links = call_roll(sys.argv[1], index=int(sys.argv[2]), count=3, limit_s=60.0)\n"
    "links.gather('here'); print('here', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_is_named_by_the_others(victim):
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CALL, address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    try:
        assert all(process.stdout.readline() == "here\n" for process in processes)
        processes[victim].send_signal(signal.SIGKILL)
        for index, process in enumerate(processes):
            said = process.communicate(timeout=20)[1]
            if index != victim:
                assert process.returncode == PROCESS_LOST == 76
                assert f"because process {victim} on {socket.gethostname()} has ended" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
