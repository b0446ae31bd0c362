"""A headless Chromium for tests of pages, told what to do through the DevTools protocol.

The protocol goes through a pipe: each message is JSON and ends with a zero byte. So the tests need
a browser, and no other package.

>>> with Browser.start(folder) as browser:                                     # doctest: +SKIP
...     page = browser.open(file, width=400, height=800)
...     page.value("document.title")
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    "no Chromium was found: install it from the system's packages (apt-get install chromium) to "
    "test pages in a browser"
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
TIMEOUT_S = 60.0

KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Enter": 13, "Tab": 9}
"""Names of keys, and the codes that the protocol wants."""


def find_chromium() -> str | None:
    """The program, if this machine has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], *, to: int, back: int) -> None:
        self.process, self._to, self._back = process, to, back
        self._number, self._unread = 0, b""
        self.events: list[dict[str, Any]] = []

    @classmethod
    @contextlib.contextmanager
    def start(cls, folder: Path) -> Iterator[Browser]:
        """Starts it, with its profile in a folder, and ends it."""
        program = find_chromium()
        assert program is not None, MISSING
        its_in, our_out = os.pipe()
        our_in, its_out = os.pipe()
        # The browser reads from descriptor 3, and writes to 4.
        process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$0" "$@" 3<&{its_in} 4>&{its_out}', program, *FLAGS),
                *(f"--user-data-dir={folder}", "about:blank"),
            ],
            pass_fds=(its_in, its_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in)
        os.close(its_out)
        browser = cls(process, to=our_out, back=our_in)
        try:
            yield browser
        finally:
            with contextlib.suppress(OSError, AssertionError):
                browser.call("Browser.close")
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(our_out)
            os.close(our_in)

    def call(self, method: str, *, session: str = "", **params: Any) -> dict[str, Any]:
        """Sends a command, and returns its result; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                assert "error" not in found, f"{method}: {found['error']}"
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def wait_for(self, method: str, *, session: str, after: int) -> None:
        """Reads until an event comes; those before place `after` in the list do not count."""
        while not any(
            event.get("method") == method and event.get("sessionId") == session
            for event in self.events[after:]
        ):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._back], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"the browser said nothing for {TIMEOUT_S} s"
            read = os.read(self._back, 1 << 20)
            assert read, "the browser has ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, file: Path, *, width: int, height: int = 900, dark: bool = False) -> Page:
        """Loads a page in a new window."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        page.call("Emulation.setEmulatedMedia", features=[scheme, motion])
        known = len(self.events)
        page.call("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("Page.loadEventFired", session=session, after=known)
        return page


class Page:
    """A window."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self._session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command for this window."""
        return self.browser.call(method, session=self._session, **params)

    def value(self, expression: str) -> Any:
        """What JavaScript gives for an expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, pressed and let go."""
        code = {"windowsVirtualKeyCode": KEYS[key], "key": key, "code": key}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Writes a PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings of scripts and of the browser, and what was asked of a network."""
        self.value("0")  # What happened before is then known.
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self._session:
                continue
            method, params = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"]["text"])
            elif method == "Runtime.consoleAPICalled":
                found.append(f"console.{params['type']}: {params['args']}")
            elif method == "Log.entryAdded":
                found.append(params["entry"]["text"])
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [] if url.startswith("file:") else [f"asks for {url}"]
        return found
