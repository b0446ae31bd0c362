"""Connections between the processes of a run: the roll call at the start, and who has ended.

Every process keeps one connection to process 0, which passes news on. jax has such a service, too,
but it aborts the program, without a name, where a process does not come. The roll call is held at
the coordinator's address before jax's own service takes it over.

>>> links = call_roll("10.0.0.1:8476", count=4, index=2, limit_s=300.0)       # doctest: +SKIP
>>> links.gather("hello")                                                      # doctest: +SKIP
['hello', 'hello', 'hello', 'hello']
"""

from __future__ import annotations

import contextlib
import faulthandler
import ipaddress
import json
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxspec.interruption import PROCESS_LOST, STALLED

_GREETING = "jaxspec"
_RETRY_S, _REPLY_S = 0.25, 5.0
_OTHERS_S = 30.0
"""How long something else may answer at process 0's address, such as jax's service of a run that is
just ending: processes that are started again at once come before it is gone."""
_LONGEST_LINE = 1 << 18
_AGAIN = "Start the same command again on all hosts; a run continues from its last checkpoint."
_GRACE_S = 3.0
"""How long a process may take to end by itself after another has: both may have the same reason."""
_LAST_S = 6.0
"""How long process 0, which passes news on, waits for the others to end before it ends."""
_TELL_S = 1.0
"""How often a process tells the others that it gets on, at most."""
_ALIVE_S, _PROBES = 5, 3
"""A host that answers nothing is lost after `_ALIVE_S` x (1 + `_PROBES`) seconds."""


class Links:
    """The connections of one process. See `call_roll`.

    Args:
      index: number of this process.
      hosts: names of the hosts, by process.
      peers: process -> connection: all others for process 0, and process 0 for the others.
    """

    def __init__(
        self, index: int, hosts: Mapping[int, str], peers: Mapping[int, socket.socket]
    ) -> None:
        self.index, self.hosts = index, dict(hosts)
        self._peers = dict(peers)
        self._said: dict[int, queue.SimpleQueue[Any]] = {
            peer: queue.SimpleQueue() for peer in peers
        }
        self.on_progress: Callable[[], None] = lambda: None
        """Is called when another process has told that it gets on."""
        self._told = -math.inf
        self._sending = threading.Lock()
        self._is_ending = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(peer,), daemon=True, name=f"link {peer}")
            for peer in peers
        ]
        for reader in self._readers:
            reader.start()

    def name(self, process: int) -> str:
        """What messages call a process."""
        return f"process {process} on {self.hosts[process]}"

    def gather(self, value: Any) -> list[Any]:
        """What all processes say, in their order. It waits for all of them.

        Args:
          value: anything that JSON holds.
        """
        if self.index:
            self._send(0, {"says": value})
            said: list[Any] = self._said[0].get()
            return said
        said = [value, *(self._said[peer].get() for peer in sorted(self._peers))]
        for peer in self._peers:
            self._send(peer, {"says": said})
        return said

    def tell_progress(self) -> None:
        """Tells the others that work which takes long gets on, if that was not just told."""
        now = time.monotonic()
        if now - self._told >= _TELL_S:
            self._told = now
            for peer in self._peers:
                self._send(peer, {"progress": True})

    def end(self, status: int, text: str) -> None:
        """Tells the others that this process ends, and why; they end with the same status."""
        if not self._is_ending.is_set():
            self._is_ending.set()
            self._pass_on({"ended": self.index, "status": status, "text": text})
            self._end_last()

    def close(self) -> None:
        """Ends the connections. All processes have to be done: call `gather` before."""
        self._is_ending.set()
        for peer in self._peers:
            self._send(peer, {"done": True})
        for reader in self._readers:
            reader.join(_LAST_S)
        for connection in self._peers.values():
            connection.close()

    def _send(self, peer: int, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        # A process that is gone is noticed by its reader.
        with self._sending, contextlib.suppress(OSError):
            self._peers[peer].sendall(line)

    def _pass_on(self, news: Mapping[str, Any]) -> None:
        for peer in self._peers:
            if peer != news["ended"]:
                self._send(peer, news)

    def _read(self, peer: int) -> None:
        """Reads what a peer sends until it is done or gone."""
        # A peer that is killed while it sends leaves half a line, which is not JSON.
        lost = (OSError, ValueError)
        with contextlib.suppress(*lost), self._peers[peer].makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "done" in message:
                    return
                if "ended" in message:
                    self._end_with(message)
                    return
                if "progress" in message:
                    self.on_progress()
                    if self.index == 0:
                        self.tell_progress()
                    continue
                self._said[peer].put(message["says"])
        if not self._is_ending.is_set():
            text = f"it was killed, or its host is gone. {_AGAIN}"
            self._end_with({"ended": peer, "status": PROCESS_LOST, "text": text})

    def _end_with(self, news: Mapping[str, Any]) -> None:
        """Ends this process because another one has ended."""
        if self.index == 0:
            self._pass_on(news)
        is_own_fault = news["status"] not in (PROCESS_LOST, STALLED)
        if self._is_ending.wait(_GRACE_S if is_own_fault else 0.0):
            return
        self._is_ending.set()
        if news["status"] == STALLED:
            dump_stacks(self.index)
        _say(f"error: stopped because {self.name(news['ended'])} has ended: {news['text']}")
        self._end_last()
        os._exit(news["status"])

    def _end_last(self) -> None:
        """Gives the others time to say why they end: jax aborts them once process 0 is gone."""
        if self.index:
            return
        until = time.monotonic() + _LAST_S
        for reader in self._readers:
            if reader is not threading.current_thread():
                reader.join(max(0.0, until - time.monotonic()))


def dump_stacks(index: int) -> None:
    """Writes to stderr what every thread of this process is doing."""
    _say(f"Stacks of process {index} on {socket.gethostname()}:")
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


class _OtherService(ValueError):
    """What answers is not process 0."""


def call_roll(address: str, *, count: int, index: int, limit_s: float) -> Links:
    """Connects the processes of a run.

    Args:
      address: HOST:PORT of process 0, the same for all.
      count: number of processes.
      index: number of this process.
      limit_s: seconds that processes may come after the first.

    Raises:
      ValueError: process 0 does not answer, its port is in use, two processes have the same number,
        or some did not come (the message has their numbers).
    """
    host, _, port = address.rpartition(":")
    host, until = host.strip("[]"), time.monotonic() + limit_s
    if index == 0:
        own = host if is_loopback(address) else ""
        return _await_all(own, int(port), count=count, until=until, limit_s=limit_s)
    return _join(host, int(port), count=count, index=index, until=until, limit_s=limit_s)


def is_loopback(address: str) -> bool:
    """Whether an address, HOST:PORT, is one that only this host can reach.

    Another name of this host may lead here to such an address, and elsewhere not.

    >>> is_loopback("localhost:80"), is_loopback("[::1]:80"), is_loopback("node0:80")
    (True, True, False)
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


def _await_all(host: str, port: int, *, count: int, until: float, limit_s: float) -> Links:
    """Process 0: accepts the others and answers all of them at once."""
    hosts, peers = {0: socket.gethostname()}, dict[int, socket.socket]()
    problem = ""
    try:
        listener = _listen(host, port)
    except OSError as error:
        raise ValueError(
            f"Process 0 cannot listen on port {port} of this host: {error.strerror or error}. Name "
            "another port in --coordinator HOST:PORT, the same for all processes."
        ) from error
    with contextlib.ExitStack() as stack:
        with listener:
            while not problem and _still_there(hosts, peers) < count:
                listener.settimeout(max(0.01, until - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    problem = _missing(hosts, count=count, limit_s=limit_s)
                    break
                said = _receive(connection)
                if not isinstance(said, dict) or said.get(_GREETING) is None:
                    connection.close()  # Something else that tries ports.
                    continue
                stack.callback(connection.close)
                other, named = int(said["index"]), str(said["host"])
                _still_there(hosts, peers)  # It may have been started again.
                problem = _misfit(other, named, int(said["count"]), hosts=hosts, count=count)
                if problem:
                    _tell(connection, {"refused": problem})
                else:
                    _keep_alive(connection)
                    hosts[other], peers[other] = named, connection
        for connection in peers.values():
            _tell(connection, {"refused": problem} if problem else {"hosts": hosts})
        if problem:
            raise ValueError(problem)
        stack.pop_all()
    return Links(0, hosts, peers)


def _misfit(other: int, named: str, said: int, *, hosts: Mapping[int, str], count: int) -> str:
    """Why a process cannot be one of those that process 0 waits for; "": it can."""
    if said != count:
        return (
            f"Process 0 on {hosts[0]} is one of {count} processes, but process {other} on {named} "
            f"is one of {said}: give all of them the same --processes."
        )
    if other in hosts:
        return (
            f"{named} and {hosts[other]} have both started process {other}: give each process its "
            f"own --process-id, from 0 to {count - 1}."
        )
    return ""


def _still_there(hosts: dict[int, str], peers: dict[int, socket.socket]) -> int:
    """How many processes have come, without those that have ended since, which are forgotten."""
    for other in [other for other, connection in peers.items() if _has_ended(connection)]:
        hosts.pop(other)
        peers.pop(other).close()
    return len(hosts)


def _has_ended(connection: socket.socket) -> bool:
    """Whether the other side of a connection is gone."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _tell(connection: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _join(host: str, port: int, *, count: int, index: int, until: float, limit_s: float) -> Links:
    """Any other process: finds process 0 and waits for its answer.

    At first, the port may still be that of a run that has just ended: see `_OTHERS_S`.
    """
    others_until = min(until, time.monotonic() + _OTHERS_S)
    while True:
        try:
            return _join_once(host, port, count=count, index=index, until=until, limit_s=limit_s)
        except _OtherService:
            if time.monotonic() > others_until:
                raise
            time.sleep(_RETRY_S)


def _join_once(
    host: str, port: int, *, count: int, index: int, until: float, limit_s: float
) -> Links:
    connection = None
    while connection is None:
        try:
            connection = socket.create_connection((host, port), timeout=_REPLY_S)
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"The coordinator {host}:{port} has not answered process {index} within "
                    f"{limit_s:g} seconds ({error.strerror or error}). Start process 0 there, and "
                    "check the address in --coordinator, the name of the host and the firewall."
                ) from error
            time.sleep(_RETRY_S)
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        host_here = socket.gethostname()
        _tell(connection, {_GREETING: 1, "index": index, "count": count, "host": host_here})
        # Process 0 may have started later, and waits as long for the others.
        said = _receive(connection, timeout_s=limit_s + _REPLY_S)
        if not isinstance(said, dict) or not {"hosts", "refused"} & said.keys():
            raise _OtherService(
                f"What answers process {index} at {host}:{port} is not process 0 of this run, or "
                "it has ended: check --coordinator, and the messages of process 0."
            )
        if "refused" in said:
            raise ValueError(said["refused"])
        _keep_alive(connection)
        stack.pop_all()
    hosts = {int(each): name for each, name in said["hosts"].items()}
    return Links(index, hosts, {0: connection})


def _listen(host: str, port: int) -> socket.socket:
    """Listens at an address of this host; "": at all of them."""
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _receive(connection: socket.socket, *, timeout_s: float = _REPLY_S) -> Any:
    """One line of JSON; None: something else, or nothing in time."""
    connection.settimeout(timeout_s)
    received = b""
    try:
        while not received.endswith(b"\n") and len(received) < _LONGEST_LINE:
            # One byte at a time: what follows belongs to the reader.
            if not (byte := connection.recv(1)):
                return None
            received += byte
        return json.loads(received)
    except (OSError, ValueError):
        return None
    finally:
        connection.settimeout(None)


def _keep_alive(connection: socket.socket) -> None:
    """Makes the system notice a host that is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _ALIVE_S),
        ("TCP_KEEPINTVL", _ALIVE_S),
        ("TCP_KEEPCNT", _PROBES),
    ):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _missing(hosts: Mapping[int, str], *, count: int, limit_s: float) -> str:
    joined = ", ".join(f"{index} ({hosts[index]})" for index in sorted(hosts))
    missing = ", ".join(str(index) for index in range(count) if index not in hosts)
    return (
        f"Not all {count} processes have come within {limit_s:g} seconds. Joined: {joined}. "
        f"Missing: {missing}. Start the missing ones with the same --coordinator and --processes, "
        "or see why they have ended."
    )
