"""Files and folders that a user may name by mistake, small and made here."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, BAD_ROW = 1000, 700
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def image() -> bytes:
    """A PNG of one grey pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0\x80")
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def messages(number: int, *, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    """A conversation that no other number gives."""
    turns = [{"role": role, "content": f"{role} says {number}"} for role in roles]
    return {"messages": turns}


def lines(*, bad: bytes, number: int = BAD_ROW, count: int = ROWS) -> bytes:
    """JSON lines, all of them good but one."""
    rows = [json.dumps(messages(each)).encode() for each in range(count)]
    rows[number - 1] = bad
    return b"\n".join(rows) + b"\n"


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("chats.jsonl", json.dumps(messages(0)))


def _bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


_ORDER = json.dumps(messages(0, roles=("assistant", "user"))).encode()
_LATIN_1 = json.dumps(messages(0)).replace("says", "sagt \xfc").encode("latin-1")
_DEEP = b'{"messages": ' + b"[" * 100_000

DATA_FILES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "missing": ("absent.jsonl", lambda path: None, ("absent.jsonl", "check the path")),
    "empty": ("empty.jsonl", _bytes(b""), ("empty.jsonl is empty",)),
    "blank": ("blank.txt", _bytes(b"\n \n"), ("blank.txt is empty",)),
    "empty folder": ("folder", Path.mkdir, ("folder holds no data", ".jsonl")),
    "image": ("image.png", _bytes(image()), ("image.png is a PNG image", "JSONL")),
    "image as JSONL": ("chats.jsonl", _bytes(image()), ("chats.jsonl is a PNG image", "JSONL")),
    "zip": ("chats.zip", _zip, ("chats.zip is a zip archive", "unpack it")),
    "pickle": ("chats.pkl", _bytes(b"\x80\x04N."), ("chats.pkl is a pickle", "JSON lines")),
    "pointer": (
        "chats.jsonl",
        _bytes(_POINTER),
        ("chats.jsonl is a pointer of Git LFS", "git lfs pull"),
    ),
    "table": (
        "chats.csv",
        _bytes(b"prompt,response\na,b\n"),
        ("chats.csv is a spreadsheet, or a table", "JSONL"),
    ),
    "UTF-16": (
        "chats.jsonl",
        _bytes(json.dumps(messages(0)).encode("utf-16")),
        ("chats.jsonl is UTF-16", "UTF-8"),
    ),
    "cut gzip": (
        "chats.jsonl.gz",
        _bytes(gzip.compress(lines(bad=b"{}", count=700), mtime=0)[:-40]),
        ("chats.jsonl.gz", "damaged", "good copy"),
    ),
    "cut Parquet": (
        "chats.parquet",
        _bytes(b"PAR1" + b"\0" * 100),
        ("chats.parquet", "damaged", "good copy"),
    ),
    "not UTF-8": (
        "chats.jsonl",
        _bytes(lines(bad=_LATIN_1)),
        (f"line {BAD_ROW} of ", "chats.jsonl", "not UTF-8"),
    ),
    "no JSON": (
        "chats.jsonl",
        _bytes(lines(bad=b'{"messages": [')),
        (f"line {BAD_ROW} of ", "chats.jsonl", "not JSON"),
    ),
    "deep JSON": (
        "chats.jsonl",
        _bytes(lines(bad=_DEEP)),
        (f"line {BAD_ROW} of ", "chats.jsonl", "nested too deeply"),
    ),
    "no conversation": (
        "chats.jsonl",
        _bytes(lines(bad=b'{"a": 1}')),
        (f"line {BAD_ROW} of ", "chats.jsonl", "'a'", "messages"),
    ),
    "roles out of order": (
        "chats.jsonl",
        _bytes(lines(bad=_ORDER)),
        (f"line {BAD_ROW} of ", "chats.jsonl", "roles out of order", "expected system or user"),
    ),
}
"""Kind -> a file's name, what makes it, and what the message has to say."""


def _truncated(target: Path) -> None:
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _config(**entries: Any) -> Callable[[Path], object]:
    """Another config.json, with weights that belong to neither."""
    return lambda target: (target / "config.json").write_text(json.dumps(entries))


def _index(target: Path) -> None:
    (target / "model.safetensors").unlink()
    listed = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    text = json.dumps({"metadata": {}, "weight_map": listed})
    (target / "model.safetensors.index.json").write_text(text)


def _pickle(target: Path) -> None:
    (target / "model.safetensors").unlink()
    (target / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def _instead(content: bytes) -> Callable[[Path], None]:
    """A file in the folder's place."""

    def make(target: Path) -> None:
        shutil.rmtree(target)
        target.write_bytes(content)

    return make


def _rewritten(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda target: (target / name).write_bytes(content)


MODEL_FOLDERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (shutil.rmtree, ("model",)),
    "an image": (_instead(image()), ("model",)),
    "empty folder": (lambda target: (shutil.rmtree(target), target.mkdir()), ("config.json",)),
    "empty config.json": (_rewritten("config.json", b""), ("config.json", "is empty", "good copy")),
    "config.json not UTF-8": (_rewritten("config.json", b'{"\xff": 1}'), ("config.json", "0xff")),
    "BERT": (
        _config(model_type="bert", architectures=["BertModel"], hidden_size=16),
        ("config.json", "BertModel", "expected"),
    ),
    "T5": (
        _config(model_type="t5", architectures=["T5ForConditionalGeneration"], d_model=16),
        ("config.json", "T5ForConditionalGeneration", "expected"),
    ),
    "a vision model": (
        _config(model_type="vit", architectures=["ViTModel"], image_size=224),
        ("config.json", "ViTModel", "expected"),
    ),
    "truncated safetensors": (_truncated, ("model.safetensors", "Download the file again")),
    "empty safetensors": (_rewritten("model.safetensors", b""), ("model.safetensors", "Download")),
    "a pointer of Git LFS": (
        _rewritten("model.safetensors", _POINTER),
        ("git lfs pull",),
    ),
    "an index that names a missing shard": (
        _index,
        ("model-00001-of-00002.safetensors", "Download"),
    ),
    "a pickle": (_pickle, ("pytorch_model.bin", "convert", "save_pretrained")),
}
"""Kind -> what makes it of a good folder called "model", and what the message has to say."""
