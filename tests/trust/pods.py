"""Real processes on this machine that train together, as the hosts of a pod do."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_PATIENCE_S = 400.0


def _environment() -> dict[str, str]:
    """That of the tests, with one device for each process."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    flags += " --xla_force_host_platform_device_count=1"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Pod:
    """Some processes of `train.py`. Use it as a context manager: it leaves none behind.

    Args:
      arguments: of train.py, without those for the processes.
      count: number of processes.
      logs: folder for what they print.
      last: further arguments of the last process.
    """

    def __init__(
        self, arguments: Sequence[str], *, count: int, logs: Path, last: Sequence[str] = ()
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [logs / f"{index}.log" for index in range(count)]
        port, environment = free_port(), _environment()
        self.processes: list[subprocess.Popen[bytes]] = []
        for index, log in enumerate(self._logs):
            own = ["--processes", str(count), "--process-id", str(index)]
            own = [*own, "--coordinator", f"127.0.0.1:{port}"] if count > 1 else own[:2]
            if index == count - 1:
                own += last
            with log.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "train.py", *arguments, *own],
                        cwd=ROOT,
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, index: int) -> str:
        """What a process has printed."""
        return self._logs[index].read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str) -> None:
        """Waits until process 0 has printed a text."""
        until = time.monotonic() + _PATIENCE_S
        while text not in self.said(0):
            ended = [process.poll() for process in self.processes]
            assert not any(ended) and time.monotonic() < until, (text, ended, self.said(0))
            time.sleep(0.1)

    def send(self, index: int, number: signal.Signals) -> None:
        """Sends a process a signal."""
        self.processes[index].send_signal(number)

    def statuses(self, *, within_s: float = _PATIENCE_S) -> list[int]:
        """The exit statuses of all, which have to end in time."""
        until = time.monotonic() + within_s
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]
