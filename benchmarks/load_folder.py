"""How fast a folder of safetensors is read, and how much memory that takes on the host.

    python -m benchmarks.load_folder                         # a synthetic Llama, 3 GB in 3 shards
    python -m benchmarks.load_folder --folder /models/Qwen3-4B --dtype bfloat16

A synthetic folder is written to --directory, and removed afterwards. Reading happens in processes
of their own: one for each dtype, so that the peaks do not mix. Memory is counted twice: all of the
process's resident memory, mapped files included, and anonymous memory, which the system cannot take
back. On a CPU the parameters are host memory too, so the table shows what was needed in addition to
them. "again" is a second reading in the same process: with `source scripts/host_memory.env` it
finds the memory of the first one, which a virtual machine may take long to hand out. A file that
was just written is in the page cache ("warm"); --cold asks the system to drop it first, which it
may not do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from jaxspec.checkpoints import safetensors_io
from jaxspec.checkpoints.families.registry import target_family
from jaxspec.checkpoints.safetensors_io import NUMPY_DTYPES
from jaxspec.config import TransformerConfig

CONFIG = TransformerConfig(
    family="llama", vocab_size=64_000, hidden_size=2048, num_layers=26, num_heads=16,
    num_kv_heads=8, head_dim=128, intermediate_size=6144, qk_norm=False, tie_embeddings=False,
)  # fmt: skip
SHARD_BYTES = 1_000_000_000
_EVERY_SECONDS = 0.002


def main() -> None:
    """Writes a folder if none is named, reads it once for each dtype, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="read this one; default: a synthetic one")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--stored", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(read(args.folder, args.child, cold=args.cold)))
        return
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="load_folder.") as temporary:
        folder = args.folder or write(Path(temporary) / "model", stored=args.stored)
        shards = [file.stat().st_size for file in folder.glob("*.safetensors")]
        print(
            f"{folder}: {sum(shards) / 1e9:.2f} GB in {len(shards)} files, the largest "
            f"{max(shards) / 1e9:.2f} GB; {'cold if the system allows it' if args.cold else 'warm'}"
        )
        print("dtype      seconds   GB/s  again   parameters   peak beside them: all   anonymous")
        for dtype in args.dtype:
            row = in_a_process(folder, dtype, cold=args.cold)
            print(
                f"{dtype:<10} {row['seconds']:>7.2f} {sum(shards) / 1e9 / row['seconds']:>6.2f} "
                f"{sum(shards) / 1e9 / row['again']:>6.2f} {row['parameters'] / 1e9:>9.2f} GB "
                f"{row['resident'] / 1e9:>19.2f} GB "
                f"{row['anonymous'] / 1e9:>8.2f} GB = {row['anonymous'] / max(shards):.2f} x the "
                "largest file"
            )


def write(folder: Path, *, stored: str) -> Path:
    """A folder of random weights in shards."""
    folder.mkdir()
    family = target_family(CONFIG)
    layout = family.layout(CONFIG, ())
    document = family.to_json(CONFIG, dtype="bfloat16", special_ids={})
    (folder / "config.json").write_text(json.dumps(document))
    dtype = {**NUMPY_DTYPES, "float16": np.dtype(np.float16)}[stored]
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(1 << 20, dtype="f4").astype(dtype)

    def tensors() -> object:
        for name, shape in layout.tensor_shapes.items():
            yield name, np.resize(noise, shape)

    safetensors_io.write_tensors(
        folder,
        tensors(),  # type: ignore[arg-type]
        sizes={
            name: int(np.prod(shape)) * dtype.itemsize
            for name, shape in layout.tensor_shapes.items()
        },
        max_shard_bytes=SHARD_BYTES,
    )
    return folder


def in_a_process(folder: Path, dtype: str, *, cold: bool) -> dict[str, float]:
    """`read` in a new process."""
    command = [sys.executable, "-m", "benchmarks.load_folder", "--folder", str(folder)]
    command += ["--child", dtype, *(["--cold"] if cold else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def read(folder: Path, dtype: str, *, cold: bool) -> dict[str, float]:
    """Seconds, bytes of the parameters, and the peaks of memory above these and the start."""
    import jax

    from jaxspec.checkpoints.huggingface import load_target

    jax.block_until_ready(jax.numpy.zeros(1))
    if cold:
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = memory()
    peaks = dict(before)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY_SECONDS):
            now = memory()
            for name in peaks:
                peaks[name] = max(peaks[name], now[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds, again = 0.0, 0.0
    for _ in range(2):
        params = None
        start = time.perf_counter()
        _, params = load_target(folder, dtype=dtype)  # type: ignore[arg-type]
        jax.block_until_ready(params)
        seconds, again = seconds or time.perf_counter() - start, time.perf_counter() - start
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    on_host = size if jax.default_backend() == "cpu" else 0
    above = {name: peaks[name] - before[name] - on_host for name in peaks}
    return {"seconds": seconds, "again": again, "parameters": size, **above}


def memory() -> dict[str, int]:
    """Bytes of this process that are resident, and of these the anonymous ones."""
    text = Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: line.split() for line in text.splitlines()}
    return {
        "resident": 1024 * int(found["VmRSS"][1]),
        "anonymous": 1024 * int(found["RssAnon"][1]),
    }


if __name__ == "__main__":
    main()
