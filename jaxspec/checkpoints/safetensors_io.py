"""Folders of safetensors files (one file, or shards with an index): read by slice, written whole.

The safetensors library checks the headers. The tensors are then read from the files straight into
the arrays that hold them: a mapped file would be in memory a second time, and a large model does
not fit there twice.

Only safetensors are supported: PyTorch's pickled formats can run code when they are opened.

>>> with TensorFolder("Qwen3-4B") as tensors:  # doctest: +SKIP
...     first_rows = tensors.read("model.embed_tokens.weight", (slice(0, 4), slice(None)))
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import re
import shlex
import sys
import tempfile
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxspec.checkpoints.config_reader import read_json
from jaxspec.interruption import is_outage
from jaxspec.json_files import parse_object, refuse_pointer, shortened, shown
from jaxspec.paths import is_file, is_remote, read_range, user_path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOAT_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
"""Stored types that can be read. (Quantised ones would need their scales.)"""

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(jnp.bfloat16),
}
"""Types of parameters, by name."""
DEFAULT_SHARD_BYTES = 5_000_000_000
_PIECE_BYTES = 1 << 23
"""Tensors are read in pieces of about this size, several at a time."""
_MOST_ROWS = 256
"""Rows of a piece that is turned or converted: longer columns would not stay in a core's cache, and
turning takes up to 4 times as long."""
_MOST_THREADS = 4
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors allows no more."""


class _LocalFile:
    """A file whose parts several threads read straight into arrays.

    Args:
      path: where it is, on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.header = path
        self._file = path.open("rb", buffering=0)

    def close(self) -> None:
        self._file.close()

    def read_into(self, view: memoryview, start: int) -> int:
        """Fills the beginning of `view` with bytes from `start` on; returns how many."""
        return os.preadv(self._file.fileno(), [view], start)


class _RemoteFile:
    """A file in a bucket: each part is one request.

    Args:
      path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        length = int.from_bytes(read_range(path, 0, 8), "little")
        head = read_range(path, 0, 8 + min(length, _LONGEST_HEADER))
        # The library wants a file: one with the header, and nothing but holes after it.
        self._folder = tempfile.TemporaryDirectory()
        self.header = Path(self._folder.name) / path.name
        self.header.write_bytes(head)
        os.truncate(self.header, path.stat().st_size)

    def close(self) -> None:
        self._folder.cleanup()

    def read_into(self, view: memoryview, start: int) -> int:
        """See `_LocalFile`."""
        part = read_range(self._path, start, len(view))
        view[: len(part)] = part
        return len(part)


class _Stored(NamedTuple):
    """Where a tensor is."""

    file: _LocalFile | _RemoteFile
    start: int
    """Of its first byte in the file."""
    dtype: np.dtype[Any]


_Part = tuple[np.ndarray, tuple[slice, ...]]
"""An array, and the columns that it holds."""


class TensorFolder:
    """The tensors of a checkpoint folder, opened lazily. Use it as a context manager.

    If there is an index, it decides: each tensor is read from the file that the index names for it,
    and everything else in the folder is ignored.

    Tensors whose names match a pattern in `ignored` ({i} is a layer, * anything) are treated as
    absent, whatever their type. An index may list those in `optional` although no file has them.

    Raises:
      ValueError: no safetensors in the folder, an index that cannot be read, a missing shard that
        the index names, a file that is not a safetensors file, or quantised weights.
      OSError: a file cannot be read now; so do the methods that read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        ignored: Sequence[str] = (),
        optional: Collection[str] = (),
    ) -> None:
        self.folder = user_path(folder)
        self._optional = frozenset(optional)
        patterns = [
            re.escape(pattern).replace(r"\{i\}", r"\d+").replace(r"\*", ".*") for pattern in ignored
        ]
        self._ignored = re.compile("|".join(patterns) or r"(?!)")
        self._stack = contextlib.ExitStack()
        self._stored: dict[str, _Stored] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each tensor as stored."""
        self.bytes_read = 0
        """By all readers so far."""
        self.on_read: Callable[[int], None] = lambda bytes_read: None
        """Is told `bytes_read` after each tensor."""
        listed = self._listed()
        with contextlib.ExitStack() as opened:
            stored_dtypes: dict[str, str] = {}
            for file_name in sorted(set(listed.values()) if listed else {WEIGHTS}):
                path = self.folder / file_name
                _refuse_pointer(path)
                with _refusing(str(path)):
                    file = (_RemoteFile if is_remote(path) else _LocalFile)(path)
                    opened.callback(file.close)
                with _refusing(str(path)), safe_open(file.header, framework="np") as checked:
                    found = {
                        name: checked.get_slice(name)
                        for name in checked.keys()  # noqa: SIM118  (not a dict)
                        if not (listed and listed.get(name) != file_name)
                        and not self._ignored.fullmatch(name)
                    }
                starts = _starts(file.header, path)
                for name, view in found.items():
                    stored_dtypes[name] = str(view.get_dtype())
                    self.shapes[name] = tuple(view.get_shape())
                    if dtype := FLOAT_DTYPES.get(stored_dtypes[name]):
                        self._stored[name] = _Stored(file, starts[name], dtype)
            self._check(listed, stored_dtypes)
            self._threads = opened.enter_context(
                ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
            )
            self._stack = opened.pop_all()

    def rename(self, old: str, new: str) -> None:
        """Gives a tensor another name."""
        self.shapes[new] = self.shapes.pop(old)
        if old in self._stored:
            self._stored[new] = self._stored.pop(old)

    def _listed(self) -> dict[str, str]:
        """Tensor -> file, from the index; {} for a folder with one file."""
        if not self.folder.is_dir():
            raise ValueError(f"Not a folder: {self.folder}. Expected one with {WEIGHTS}.")
        if not (self.folder / INDEX).exists():
            if (self.folder / WEIGHTS).is_file():
                return {}
            raise ValueError(
                f"No {WEIGHTS} and no {INDEX} in {self.folder}.{_about_pickles(self.folder)}"
            )
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
        absent = sorted(f for f in set(listed.values()) if not is_file(self.folder / f))
        if len(absent) == len(set(listed.values())) and is_file(self.folder / WEIGHTS):
            print(
                f"{self.folder}: none of the files that {INDEX} names are there, so {WEIGHTS} is "
                "read. The index seems to be an older model's.",
                file=sys.stderr,
            )
            return {}
        if absent:
            raise ValueError(
                f"{self.folder} is incomplete: {INDEX} names files that are missing "
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
            if not (name in self.shapes or name in self._optional or self._ignored.fullmatch(name))
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
        bounds = self._bounds(name, index)
        out = np.empty([bound.stop - bound.start for bound in bounds], self._stored[name].dtype)
        self.read_into(out, name, bounds)
        return out

    def read_into(self, out: np.ndarray, name: str, index: tuple[slice, ...] | None = None) -> None:
        """Fills an array with a tensor, or with the part that `index` selects; see `read_parts`."""
        self.read_parts([(out, index)], name)

    def read_parts(
        self, parts: Iterable[tuple[np.ndarray, tuple[slice, ...] | None]], name: str
    ) -> None:
        """Fills arrays with parts of a tensor, each in its array's dtype.

        Rows of which several parts have some columns are read once.

        Args:
          parts: (array, index). The array has the shape of the part; it need not be contiguous, and
            numbers that are too large for its dtype become infinite. The index is one slice per
            axis; None: everything.
          name: of the tensor.

        Raises:
          ValueError: the file can no longer be read.
        """
        by_rows: dict[tuple[int, int], list[_Part]] = {}
        for out, index in parts:
            rows, *columns = self._bounds(name, index) or (slice(0, 1),)
            one = out.reshape(1) if out.ndim == 0 else out
            by_rows.setdefault((rows.start, rows.stop), []).append((one, tuple(columns)))
        for (first, last), those in by_rows.items():
            self._read_rows(those, name, first, last)

    def _read_rows(self, parts: Sequence[_Part], name: str, first: int, last: int) -> None:
        """Fills arrays with columns of the rows of a tensor from `first` to `last`."""
        file, start, dtype = self._stored[name]
        shape = self.shapes[name][1:]
        row_bytes = math.prod(shape) * dtype.itemsize
        out, columns = parts[0]
        is_whole = all(c == slice(0, size) for c, size in zip(columns, shape, strict=True))
        is_plain = is_whole and out.dtype == dtype and out.flags.c_contiguous and len(parts) == 1
        step = max(1, _PIECE_BYTES // max(1, row_bytes))
        if not is_plain:
            step = min(step, _MOST_ROWS)

        def piece(row: int) -> None:
            those = slice(row - first, min(row + step, last) - first)
            target = out[those] if is_plain else np.empty((those.stop - those.start, *shape), dtype)
            _fill(file, target, start + row * row_bytes)
            if not is_plain:
                with np.errstate(over="ignore"):
                    for part, columns in parts:
                        read = target[(slice(None), *columns)]
                        part[those] = read.astype(part.dtype, copy=False)

        with _refusing(f"{shortened(name)} in {file.name}"):
            # To the end, so that the first error is raised here.
            collections.deque(self._threads.map(piece, range(first, last, step)), maxlen=0)

        self.bytes_read += row_bytes * (last - first)
        self.on_read(self.bytes_read)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(
            math.prod(self.shapes[name]) * stored.dtype.itemsize
            for name, stored in self._stored.items()
        )

    def _bounds(self, name: str, index: tuple[slice, ...] | None) -> tuple[slice, ...]:
        """An index with its ends filled in."""
        shape = self.shapes[name]
        if index is None:
            return tuple(slice(0, size) for size in shape)
        return tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, shape, strict=True))


def _fill(file: _LocalFile | _RemoteFile, out: np.ndarray, start: int) -> None:
    """Fills a contiguous array with the bytes of a file from `start` on; several threads may.

    Raises:
      EOFError: the file ends before that.
    """
    view = out.reshape(-1).view(np.uint8).data
    while view:
        count = file.read_into(view, start)
        if not count:
            raise EOFError("the file ends early")
        view, start = view[count:], start + count


def _about_pickles(folder: Path) -> str:
    """How to convert a folder that holds PyTorch's pickles; "" if it does not."""
    names = sorted(
        path.name for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}")
    )
    if not names:
        return ""
    converted = f"{folder}-safetensors"
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained({converted!r}); "
        f"T.from_pretrained({str(folder)!r}).save_pretrained({converted!r})"
    )
    how = "save the model with transformers' save_pretrained, which writes safetensors."
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        how = (
            f"convert them with transformers, and give {converted}:\n  "
            f"python -c {shlex.quote(code)}"
        )
    return (
        f" It has {shortened(', '.join(names))}: pickles, which can run code, so they are never "
        f"opened. Instead, {how}"
    )


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns whatever the library raises into a ValueError: errors of many types, and panics.

    Raises:
      OSError: a disk, network share or bucket does not answer now. The file may be whole.
    """
    try:
        yield
    except BaseException as error:
        if is_outage(error):
            if error.filename is None:
                error.filename = what
            raise
        # A panic is not an Exception, and its type cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(
                f"{what} cannot be read as safetensors: {error}. Download the file again."
            ) from error
        raise


def _refuse_pointer(path: Path) -> None:
    with _refusing(str(path)), path.open("rb") as file:
        head = file.read(100)
    refuse_pointer(head, name=path)


def _starts(file: Path, path: Path) -> dict[str, int]:
    """Where each tensor of a file begins, in bytes; the library has checked the header.

    Args:
      file: begins with the header.
      path: what messages call it.

    Raises:
      ValueError: the header names a tensor twice: the library would use the last one.
    """
    length = int.from_bytes(read_range(file, 0, 8), "little")
    header = parse_object(read_range(file, 8, length), name=f"The header of {path}")
    return {
        name: 8 + length + int(entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


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
