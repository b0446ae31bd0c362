"""A file that grows line by line, on this machine or in a bucket.

>>> file = GrowingFile(workdir / "metrics.jsonl", every_s=30)                  # doctest: +SKIP
>>> file.write(b'{"step": 1}')                                                 # doctest: +SKIP
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from jaxspec.files import naming
from jaxspec.paths import is_remote

UPLOAD_S = 30.0
"""Seconds between the uploads of a file that gets many lines."""


class GrowingFile:
    """A file that grows line by line; it is made with the first one.

    An object in a bucket cannot be appended to. There, the content is kept in memory and uploaded
    as a whole: with a line, if the last upload was `every_s` seconds ago, and when the file is
    flushed or closed. A kill loses the lines after the last upload.

    Args:
      path: the file; what it holds stays.
      every_s: seconds between uploads; 0: each line is uploaded.
    """

    def __init__(self, path: Path, *, every_s: float = 0.0) -> None:
        self.path = path
        self._every_s = every_s
        self._is_remote = is_remote(path)
        self._content = bytearray(path.read_bytes() if self._is_remote and path.exists() else b"")
        self._uploaded, self._uploaded_at = len(self._content), time.monotonic()

    def write(self, line: bytes) -> None:
        """Adds to the end; on this machine, it survives a kill of the process."""
        if not self._is_remote:
            with naming(self.path), self.path.open("ab") as file:
                file.write(line)
            return
        self._content += line
        if time.monotonic() - self._uploaded_at >= self._every_s:
            self.flush()

    def flush(self) -> None:
        """Waits until everything is on the disk or in the bucket."""
        if not self._is_remote:
            with naming(self.path), self.path.open("ab") as file:
                os.fsync(file.fileno())
        elif len(self._content) > self._uploaded:
            self.path.write_bytes(self._content)
            self._uploaded, self._uploaded_at = len(self._content), time.monotonic()

    def close(self) -> None:
        """Uploads what is left."""
        if self._is_remote:
            self.flush()
