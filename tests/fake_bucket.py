"""Google Cloud Storage in memory: for fsspec, and over HTTP for tensorstore, which orbax uses.

It behaves like the real one where that differs from a disk: objects are replaced as a whole, cannot
be appended to or renamed, and a folder is there only as long as an object's name begins with it.
"""

from __future__ import annotations

import contextlib
import email.parser
import email.policy
import importlib
import io
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fsspec.spec import AbstractFileSystem
from orbax.checkpoint._src.path import gcs_utils

from jaxspec import remote_paths

OBJECTS: dict[str, bytes] = {}
"""BUCKET/NAME -> content."""
READ: list[tuple[str, int]] = []
"""What was read through fsspec: BUCKET/NAME, and how many bytes."""
_GENERATIONS: dict[str, int] = {}


def put(name: str, content: bytes) -> None:
    """Writes an object."""
    OBJECTS[name] = content
    _GENERATIONS[name] = _GENERATIONS.get(name, 0) + 1


class FakeBucket(AbstractFileSystem):
    """The objects, for fsspec."""

    protocol = ("gs", "gcs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).split("://", 1)[-1].rstrip("/")

    def _entry(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "size": len(OBJECTS[name]),
            "type": "file",
            "generation": _GENERATIONS[name],
        }

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name in OBJECTS:
            return self._entry(name)
        if any(other.startswith(name + "/") for other in list(OBJECTS)):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        name = self._strip_protocol(path)
        if name in OBJECTS:
            entries = [self._entry(name)]
        else:
            inside = [other for other in list(OBJECTS) if other.startswith(name + "/")]
            if not inside:
                raise FileNotFoundError(path)
            parts = {other[len(name) + 1 :].partition("/")[0] for other in inside}
            entries = [self.info(f"{name}/{part}") for part in sorted(parts)]
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        name = self._strip_protocol(path)
        if name not in OBJECTS:
            raise FileNotFoundError(path)
        content = OBJECTS[name][start:end]
        READ.append((name, len(content)))
        return content

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        put(self._strip_protocol(path), bytes(value))

    def rm_file(self, path: str) -> None:
        name = self._strip_protocol(path)
        if name not in OBJECTS:
            raise FileNotFoundError(path)
        del OBJECTS[name]

    _rm = rm_file

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        name = self._strip_protocol(path)
        inside = [other for other in list(OBJECTS) if other.startswith(name + "/")]
        for found in [name] * (name in OBJECTS) + inside * recursive:
            del OBJECTS[found]

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        put(self._strip_protocol(path2), self.cat_file(path1))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        if mode != "wb":
            raise io.UnsupportedOperation(f"an object cannot be opened with mode {mode!r}")
        return _Upload(self, path)

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """As gcsfs: nothing where the bucket is there."""

    makedirs = mkdir


class _Upload(io.BytesIO):
    def __init__(self, files: FakeBucket, path: str) -> None:
        super().__init__()
        self._files, self._path = files, path

    def close(self) -> None:
        if not self.closed:
            self._files.pipe_file(self._path, self.getvalue())
        super().close()


class _Handler(BaseHTTPRequestHandler):
    """As much of the JSON API as tensorstore uses."""

    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, content: bytes = b"", *, generation: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if generation is not None:
            self.send_header("x-goog-generation", str(generation))
        self.end_headers()
        self.wfile.write(content)

    def _request(self) -> tuple[list[str], dict[str, str], bytes]:
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return parts, dict(urllib.parse.parse_qsl(url.query)), body

    def _resource(self, bucket: str, name: str) -> bytes:
        key = f"{bucket}/{name}"
        found = {
            "name": name,
            "bucket": bucket,
            "size": str(len(OBJECTS[key])),
            "generation": str(_GENERATIONS[key]),
            "updated": "2026-01-01T00:00:00Z",
            "timeCreated": "2026-01-01T00:00:00Z",
        }
        return json.dumps(found).encode()

    def _is_refused(self, key: str, query: dict[str, str]) -> bool:
        wanted = query.get("ifGenerationMatch")
        there = _GENERATIONS[key] if key in OBJECTS else 0
        return wanted is not None and int(wanted) != there

    def do_GET(self) -> None:
        parts, query, _ = self._request()
        bucket, name = parts[parts.index("b") + 1], ""
        if parts[-1] != "o":
            name = parts[parts.index("o") + 1]
            key = f"{bucket}/{name}"
            if key not in OBJECTS:
                return self._answer(404)
            if query.get("alt") != "media":
                return self._answer(200, self._resource(bucket, name))
            generation, content = _GENERATIONS[key], OBJECTS[key]
            if query.get("ifGenerationNotMatch") == str(generation):
                return self._answer(304, generation=generation)
            if asked := self.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                end = min(int(last) + 1, len(content)) if last else len(content)
                begin = int(first) if first else len(content) - int(last)
                if not first:
                    end = len(content)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
                self.send_header("Content-Length", str(end - begin))
                self.send_header("x-goog-generation", str(generation))
                self.end_headers()
                self.wfile.write(content[begin:end])
                return None
            return self._answer(200, content, generation=generation)
        prefix = f"{bucket}/{query.get('prefix', '')}"
        found = [key for key in sorted(OBJECTS) if key.startswith(prefix)]
        items = [json.loads(self._resource(bucket, key[len(bucket) + 1 :])) for key in found]
        return self._answer(200, json.dumps({"items": items}).encode())

    def do_POST(self) -> None:
        parts, query, body = self._request()
        bucket = parts[parts.index("b") + 1]
        name = query.get("name", "")
        if query.get("uploadType") == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            described, content = message.iter_parts()
            name = json.loads(described.get_payload(decode=True))["name"]
            body = content.get_payload(decode=True)
        key = f"{bucket}/{name}"
        if self._is_refused(key, query):
            return self._answer(412)
        put(key, body)
        return self._answer(200, self._resource(bucket, name), generation=_GENERATIONS[key])

    def do_DELETE(self) -> None:
        parts, query, _ = self._request()
        key = f"{parts[parts.index('b') + 1]}/{parts[parts.index('o') + 1]}"
        if key not in OBJECTS:
            return self._answer(404)
        if self._is_refused(key, query):
            return self._answer(412)
        del OBJECTS[key]
        return self._answer(204)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def fake_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """gs:// is the fake one in this block, which gives its objects."""
    OBJECTS.clear()
    READ.clear()
    # The name fsspec.registry is a read-only view of this.
    registered = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(registered, "gs", FakeBucket)
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: object())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "abc")
    remote_paths._file_system.cache_clear()
    try:
        yield OBJECTS
    finally:
        server.shutdown()
        server.server_close()
        remote_paths._file_system.cache_clear()
