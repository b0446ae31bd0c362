"""Folders of safetensors files (one file, or shards with an index): read by slice, written whole.

Only safetensors are supported: PyTorch's pickled formats can run code when they are opened.

>>> with TensorFolder("Qwen3-4B") as tensors:  # doctest: +SKIP
...     first_rows = tensors.read("model.embed_tokens.weight", (slice(0, 4), slice(None)))
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Stored types that can be read. (Quantised ones would need their scales.)"""

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(jnp.bfloat16),
}
DEFAULT_SHARD_BYTES = 5_000_000_000


class TensorFolder:
    """The tensors of a checkpoint folder, opened lazily. Use it as a context manager.

    Tensors whose names match a pattern in `ignored` ({i} is a layer) are treated as absent,
    whatever their type.

    Raises:
      ValueError: no safetensors in the folder, a missing shard that the index names, a file that
        is not a safetensors file, or quantised weights.
    """

    def __init__(self, folder: str | os.PathLike[str], *, ignored: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        patterns = [re.escape(pattern).replace(r"\{i\}", r"\d+") for pattern in ignored]
        self._ignored = re.compile("|".join(patterns) or r"(?!)")
        self._stack = contextlib.ExitStack()
        self._file_of: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each tensor as stored."""
        listed = self._listed()
        with contextlib.ExitStack() as opened:
            stored_dtypes: dict[str, str] = {}
            for file_name in sorted(set(listed.values()) if listed else {WEIGHTS}):
                file = opened.enter_context(_open(self.folder / file_name))
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    if self._ignored.fullmatch(name):
                        continue
                    view = file.get_slice(name)
                    self._file_of[name] = file
                    self.shapes[name] = tuple(view.get_shape())
                    stored_dtypes[name] = str(view.get_dtype())
            self._check(listed, stored_dtypes)
            self._stack = opened.pop_all()

    def _listed(self) -> dict[str, str]:
        """Tensor -> file, from the index; {} for a folder with one file."""
        if not self.folder.is_dir():
            raise ValueError(f"Not a folder: {self.folder}. Expected one with {WEIGHTS}.")
        if not (self.folder / INDEX).is_file():
            if (self.folder / WEIGHTS).is_file():
                return {}
            pickles = sorted(p.name for p in self.folder.glob("*.bin")) + sorted(
                p.name for p in self.folder.glob("*.pt*")
            )
            found = ""
            if pickles:
                found = (
                    f" It has {', '.join(pickles)}, which are pickles and are never opened: "
                    "convert them with transformers' save_pretrained, which writes safetensors."
                )
            raise ValueError(f"No {WEIGHTS} and no {INDEX} in {self.folder}.{found}")
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        listed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{self.folder / INDEX} has no weight_map: expected tensor -> file.")
        outside = sorted(f for f in set(listed.values()) if Path(str(f)).name != f)
        if outside:
            raise ValueError(f"{INDEX} may only name files in its own folder: got {outside}.")
        absent = sorted(f for f in set(listed.values()) if not (self.folder / f).is_file())
        if absent:
            raise ValueError(
                f"{self.folder} is incomplete: {INDEX} names {len(absent)} files that are missing "
                f"({', '.join(absent)}). Download them again."
            )
        return listed

    def _check(self, listed: dict[str, str], stored_dtypes: dict[str, str]) -> None:
        unread = sorted(
            n for n in listed if n not in self.shapes and not self._ignored.fullmatch(n)
        )
        if unread:
            raise ValueError(
                f"{INDEX} lists {len(unread)} tensors that its files do not hold: {unread}."
            )
        quantised = {
            dtype: sum(d == dtype for d in stored_dtypes.values())
            for dtype in sorted(set(stored_dtypes.values()) - set(FLOAT_DTYPES))
        }
        if quantised:
            raise ValueError(
                f"{self.folder} stores tensors of other types (type: count) {quantised}; expected "
                f"only {', '.join(FLOAT_DTYPES)}. Quantised weights are not supported: use the "
                "original ones."
            )

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or the part that `index` (one slice per axis) selects, as stored."""
        if index is None:
            return self._file_of[name].get_tensor(name)
        bounds = tuple(
            slice(*s.indices(size)[:2]) for s, size in zip(index, self.shapes[name], strict=True)
        )
        return self._file_of[name].get_slice(name)[bounds]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}.") from error


def write_tensors(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    sizes: dict[str, int],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes `tensors` as model.safetensors, or as shards with an index if they are too large.

    At most one shard is held in memory.

    Args:
      folder: an existing folder.
      tensors: (name, array), in the order of `sizes`.
      sizes: bytes of every tensor by name, needed in advance to number the shards.
      max_shard_bytes: upper limit for a file; a larger tensor gets its own file.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1: got {max_shard_bytes}.")
    shards = _plan_shards(sizes, max_shard_bytes)
    stream = iter(tensors)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = WEIGHTS
        if len(shards) > 1:
            file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # Contiguous: safetensors writes raw memory, and would store a transposed view wrongly.
        shard = {name: np.ascontiguousarray(array) for name, array in _take(stream, len(names))}
        assert list(shard) == names, "tensors and sizes name different tensors"
        # safetensors makes files that only their owner may read: give them the usual permissions.
        (folder / file_name).touch()
        mode = (folder / file_name).stat().st_mode
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(mode)
        weight_map.update(dict.fromkeys(names, file_name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan_shards(sizes: dict[str, int], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _take(stream: Iterator[tuple[str, np.ndarray]], count: int) -> Iterator[tuple[str, np.ndarray]]:
    for _ in range(count):
        yield next(stream)
