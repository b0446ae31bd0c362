"""SIGTERM and Ctrl-C: finished work is saved, and the exit status says so. Signs of progress.

>>> with StopRequests() as stops:
...     stops.requested
False
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeGuard

STOPPED_AND_SAVED = 75
"""Exit status of a command that was stopped; the same command continues (EX_TEMPFAIL)."""
PROCESS_LOST = 76
"""Exit status of the other processes of a run if one is killed or its host is gone."""
STALLED = 77
"""Exit status of a run whose step does not end."""
UNREACHABLE = 78
"""Exit status of a command whose bucket, network share or disk did not answer."""
_OUTAGES = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED),
    *(errno.ECONNABORTED, errno.ENOTCONN),
)
_ENDED_AT_ONCE = 130
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PRESSES, _WITHIN_SECONDS = 3, 5.0
_REPEAT_SECONDS = 0.1


def is_outage(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error says that files do not answer now; the same command may succeed later."""
    return isinstance(error, OSError) and error.errno in _OUTAGES


_hearing: list[Callable[[], None]] = []


def progressed() -> None:
    """Says that work which takes long has got on: a file or a tensor was read, written or sent.

    Any thread may call it. See `hearing_progress`.
    """
    for hear in tuple(_hearing):
        hear()


@contextlib.contextmanager
def hearing_progress(hear: Callable[[], None]) -> Iterator[None]:
    """In the block, a function is called at each `progressed`; it must be quick.

    >>> with hearing_progress(lambda: print("got on")):
    ...     progressed()
    got on
    """
    _hearing.append(hear)
    try:
        yield
    finally:
        _hearing.remove(hear)


class Terminated(KeyboardInterrupt):
    """SIGTERM from something such as a job scheduler, or the terminal was closed (SIGHUP)."""


@contextlib.contextmanager
def ending_when_told_to() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, but with `Terminated`.

    A SIGHUP that nohup ignores stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, end))
        yield


@contextlib.contextmanager
def repeating_lost_signals() -> Iterator[None]:
    """Sends a signal again if its exception was lost.

    Python ignores what is raised inside of some callbacks, such as jax's for the garbage collector.
    A handler that runs there would end nothing.
    """
    before = sys.unraisablehook

    def repeat(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt | SystemExit):
            before(lost)
            return
        is_ctrl_c = not issubclass(lost.exc_type, Terminated | SystemExit)
        number = signal.SIGINT if is_ctrl_c else signal.SIGTERM
        timer = threading.Timer(_REPEAT_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before


class StopRequests:
    """Notices SIGTERM, SIGHUP and Ctrl-C between the steps of a run. Use it as a context manager.

    Inside `noticed_between_steps` a signal only sets `requested`; elsewhere it ends the program
    with `STOPPED_AND_SAVED`. Three Ctrl-C in quick succession end it at once, whatever it is doing.

    Only the main thread can handle signals; in other threads this does nothing.

    Args:
      is_pod: jax handles SIGTERM, and tells all processes of the run. Other signals are passed on
        to it as SIGTERM; `requested` stays False.
    """

    def __init__(self, *, is_pod: bool = False) -> None:
        self.requested = False
        """Whether the run should stop after this step."""
        self.state = "no step was taken"
        """What the message says if the program ends outside the loop."""
        self._is_pod = is_pod
        self._waits = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            # Counted in a thread of its own: Python's handlers wait while the main thread computes.
            written, read = socket.socketpair()
            written.setblocking(False)
            before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
            self._stack.callback(read.close)
            self._stack.callback(written.close)  # Ends the thread.
            self._stack.callback(signal.set_wakeup_fd, before)
            threading.Thread(target=_count_presses, args=(read,), daemon=True).start()
            for number in _SIGNALS:
                if self._is_pod and number == signal.SIGTERM:
                    continue
                handler = signal.getsignal(number)
                is_nohup = number == signal.SIGHUP and handler is signal.SIG_IGN
                if is_nohup or handler is None:  # None: it was set outside of Python.
                    continue
                self._stack.callback(signal.signal, number, signal.signal(number, self._notice))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def noticed_between_steps(self) -> Iterator[None]:
        """Inside the block a signal only sets `requested`, which the block has to check."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self._is_pod:
            print(f"{name}: all processes stop after a step.", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.requested = True
        if self._waits:
            print(f"{name}: stopping after this step.", flush=True)
        else:
            print(f"{name}: stopped; {self.state}.", flush=True)
            raise SystemExit(STOPPED_AND_SAVED)


def _count_presses(read: socket.socket) -> Any:
    """Ends the process at the third Ctrl-C within a few seconds."""
    pressed: list[float] = []
    with contextlib.suppress(OSError):
        while numbers := read.recv(64):
            now = time.monotonic()
            pressed = [moment for moment in pressed if now - moment < _WITHIN_SECONDS]
            pressed += [now] * numbers.count(signal.SIGINT)
            if len(pressed) >= _PRESSES:
                show_cursor = b"\x1b[?25h" if sys.stdout.isatty() else b""
                os.write(2, show_cursor + b"interrupted: ended at once\n")
                os._exit(_ENDED_AT_ONCE)
