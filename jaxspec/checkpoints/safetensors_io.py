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
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxspec.checkpoints.config_reader import read_json
from jaxspec.json_files import parse_object, shortened, shown

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

    If there is an index, it decides: each tensor is read from the file that the index names for it,
    and everything else in the folder is ignored.

    Tensors whose names match a pattern in `ignored` ({i} is a layer, * anything) are treated as
    absent, whatever their type.

    Raises:
      ValueError: no safetensors in the folder, an index that cannot be read, a missing shard that
        the index names, a file that is not a safetensors file, or quantised weights.
    """

    def __init__(self, folder: str | os.PathLike[str], *, ignored: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        patterns = [
            re.escape(pattern).replace(r"\{i\}", r"\d+").replace(r"\*", ".*") for pattern in ignored
        ]
        self._ignored = re.compile("|".join(patterns) or r"(?!)")
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each tensor as stored."""
        listed = self._listed()
        with contextlib.ExitStack() as opened:
            stored_dtypes: dict[str, str] = {}
            for file_name in sorted(set(listed.values()) if listed else {WEIGHTS}):
                path = self.folder / file_name
                with _refusing(str(path)):
                    file = opened.enter_context(safe_open(path, framework="np"))
                    self._files[file_name] = file
                    for name in file.keys():  # noqa: SIM118  (not a dict)
                        is_elsewhere = bool(listed) and listed.get(name) != file_name
                        if is_elsewhere or self._ignored.fullmatch(name):
                            continue
                        view = file.get_slice(name)
                        self._file_of[name] = file_name
                        self.shapes[name] = tuple(view.get_shape())
                        stored_dtypes[name] = str(view.get_dtype())
                _check_header(path)
            self._check(listed, stored_dtypes)
            self._stack = opened.pop_all()

    def _listed(self) -> dict[str, str]:
        """Tensor -> file, from the index; {} for a folder with one file."""
        if not self.folder.is_dir():
            raise ValueError(f"Not a folder: {self.folder}. Expected one with {WEIGHTS}.")
        if not (self.folder / INDEX).exists():
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
        listed = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{self.folder / INDEX} has no weight_map: expected tensor -> file.")
        no_names = {name: file for name, file in listed.items() if not isinstance(file, str)}
        if no_names:
            raise ValueError(
                f"{self.folder / INDEX}: expected the name of a file for each tensor, got "
                f"{shown(no_names)}."
            )
        outside = sorted(f for f in set(listed.values()) if Path(f).name != f)
        if outside:
            raise ValueError(
                f"{INDEX} may only name files in its own folder: got {shown(outside)}."
            )
        absent = sorted(f for f in set(listed.values()) if not os.path.isfile(self.folder / f))
        if absent:
            raise ValueError(
                f"{self.folder} is incomplete: {INDEX} names {len(absent)} files that are missing "
                f"({shortened(', '.join(absent))}). Download them again."
            )
        if (self.folder / WEIGHTS).exists() and WEIGHTS not in listed.values():
            print(
                f"{self.folder} has both {WEIGHTS} and an {INDEX} that does not name it: only the "
                "files that the index names are read.",
                file=sys.stderr,
            )
        return listed

    def _check(self, listed: dict[str, str], stored_dtypes: dict[str, str]) -> None:
        unread = {
            name: file
            for name, file in listed.items()
            if name not in self.shapes and not self._ignored.fullmatch(name)
        }
        if unread:
            raise ValueError(
                f"{self.folder / INDEX} lists {len(unread)} tensors that are not in the files it "
                f"names (tensor: file): {shown(unread)}. Download the files again."
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
        """A tensor, or the part that `index` (one slice per axis) selects, as stored.

        Raises:
          ValueError: the file can no longer be read.
        """
        file = self._files[self._file_of[name]]
        with _refusing(f"{shortened(name)} in {self.folder / self._file_of[name]}"):
            if index is None:
                return file.get_tensor(name)
            bounds = tuple(
                slice(*s.indices(size)[:2])
                for s, size in zip(index, self.shapes[name], strict=True)
            )
            return file.get_slice(name)[bounds]


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns whatever the library raises into a ValueError: errors of many types, and panics."""
    try:
        yield
    except BaseException as error:
        # A panic is not an Exception, and its type cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{what} cannot be read as safetensors: {error}.") from error
        raise


def _check_header(path: Path) -> None:
    """Raises ValueError if a header names a tensor twice: the library would use the last one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        parse_object(file.read(length), name=f"The header of {path}")


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
