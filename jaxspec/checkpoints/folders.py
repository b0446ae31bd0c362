"""Finds the folder of a target (the user's, or the one in the package) or of a run's weights.

>>> target_folder("embedded").name
'target'
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxspec.paths import is_file, is_remote, read_range, user_path

EMBEDDED_TARGET = Path(__file__).parent.parent / "data" / "embedded" / "target"
_EDGE_BYTES, _TENSOR_BYTES = 1 << 20, 1 << 12
_AT_ONCE = 32
"""Parts of a weight file that are read at a time."""
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors allows no more."""


def target_folder(path: str) -> Path:
    """The folder with config.json, safetensors and tokenizer that `TargetConfig.path` names.

    Raises:
      ValueError: the path is empty, or there is no such folder.
    """
    if not path:
        raise ValueError(
            "target.path is empty: name a folder with config.json, safetensors and tokenizer.json "
            '(--target.path FOLDER), or "embedded" for the small target in the package.'
        )
    if path == "embedded":
        folder = EMBEDDED_TARGET
    else:
        # On this machine not Path.expanduser, which raises for an unknown user.
        folder = user_path(path) if is_remote(path) else Path(os.path.expanduser(path))
    if not is_file(folder / "config.json"):
        raise ValueError(
            f"target.path is {path!r}, but there is no config.json in {folder}: a target is a "
            "Hugging Face model folder (config.json, *.safetensors, tokenizer.json). A target "
            "trained with jaxspec is in WORKDIR/export. Models are not downloaded automatically: "
            "use hf download NAME --local-dir FOLDER."
        )
    return folder


def fingerprint(folder: Path, *, config_json: bytes | None = None) -> str:
    """A hash that tells models apart without reading all of their weights.

    Of each weight file, it reads the beginning, the end, and both ends of every tensor, many of
    them at a time: in a bucket, each is a request.

    Args:
      folder: the model's folder.
      config_json: the content of its config.json, if it has already been read.
    """
    if config_json is None:
        config_json = (folder / "config.json").read_bytes()
    digest = hashlib.sha256(config_json)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for path in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            places = [(0, _EDGE_BYTES), (size - _EDGE_BYTES, _EDGE_BYTES)]
            places += [(start - _TENSOR_BYTES, 2 * _TENSOR_BYTES) for start in _tensor_starts(path)]
            read = functools.partial(_read_place, path)
            for part in threads.map(read, places):  # In the order of the places.
                digest.update(part)
    return digest.hexdigest()[:16]


def _read_place(path: Path, place: tuple[int, int]) -> bytes:
    start, length = place
    return read_range(path, max(0, start), length)


def _tensor_starts(path: Path) -> list[int]:
    """Where the tensors of a safetensors file begin, in bytes; []: the file is damaged."""
    try:
        length = int.from_bytes(read_range(path, 0, 8), "little")
        header = json.loads(read_range(path, 8, min(length, _LONGEST_HEADER)))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        return sorted(8 + length + int(entry["data_offsets"][0]) for entry in entries)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []


def exported_weights(folder: Path) -> Path:
    """The folder with the exported weights of a run: WORKDIR/export, or the folder itself.

    Raises:
      ValueError: there are none; the message says what is missing.
    """
    for candidate in (folder / "export", folder):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.is_dir():
        raise ValueError(f"No folder {folder}: expected that of a training run, or of an export.")
    raise ValueError(
        f"No exported weights in {folder}: expected {folder / 'export' / 'config.json'}. "
        "train.py writes them at the end of a run (training.export true). For a run that was "
        "stopped, `jaxspec export` makes them from the last checkpoint."
    )
