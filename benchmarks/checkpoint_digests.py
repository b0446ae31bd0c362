"""What the digests of a checkpoint's files cost: saves a state with and without them, in turn.

    python benchmarks/checkpoint_digests.py
    python benchmarks/checkpoint_digests.py --gigabytes 4 --folder runs/digests

A training loop pays for a save twice: while `save` blocks it, and until the checkpoint is complete
(a kill before that loses it). The digests are made after that, in a separate thread; how long it
takes and how much processor time it costs is printed as well. All figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from jaxspec.checkpoints import train_state
from jaxspec.checkpoints.file_digests import write_record
from jaxspec.checkpoints.train_state import TrainCheckpoints

ARRAY_BYTES = 1 << 25


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the state (1)")
    parser.add_argument("--saves", type=int, default=12, help="saves of each kind (12)")
    parser.add_argument("--folder", help="where to save (the system's temporary folder)")
    return parser.parse_args()


def make_state(gigabytes: float) -> dict[str, jax.Array]:
    """Random numbers, which do not compress: all of their bytes reach the disk."""
    keys = jax.random.split(jax.random.key(0), max(1, round(gigabytes * 1e9 / ARRAY_BYTES)))
    normal = jax.jit(lambda key: jax.random.normal(key, (ARRAY_BYTES // 4,), jnp.float32))
    return {f"array_{number}": normal(key) for number, key in enumerate(keys)}


class Times:
    """Seconds of each save of one kind."""

    def __init__(self, write: Callable[[Path, str], None]) -> None:
        self._write = write
        self._complete_at = 0.0
        self.blocked: list[float] = []
        self.complete: list[float] = []
        self.recorded: list[float] = []
        self.processor: list[float] = []

    def write_record(self, folder: Path, record: str) -> None:
        """Called once a checkpoint is complete."""
        self._complete_at = time.perf_counter()
        self._write(folder, record)

    def measure(
        self, checkpoints: TrainCheckpoints, step: int, state: dict[str, jax.Array]
    ) -> None:
        """Saves once and waits for everything."""
        with mock.patch.object(train_state, "write_record", self.write_record):
            started, processor = time.perf_counter(), time.process_time()
            checkpoints.save(step, state, progress={})
            self.blocked.append(time.perf_counter() - started)
            checkpoints.wait()
            self.recorded.append(time.perf_counter() - self._complete_at)
            self.complete.append(self._complete_at - started)
            self.processor.append(time.process_time() - processor)

    def line(self) -> str:
        """Medians in milliseconds."""
        columns = (self.blocked, self.complete, self.recorded, self.processor)
        return "".join(f"{statistics.median(values) * 1e3:12.0f}" for values in columns)

    def paid(self) -> float:
        """Seconds that a training loop pays for a save: blocked, and until it is complete."""
        return statistics.median(map(sum, zip(self.blocked, self.complete, strict=True)))


def main() -> None:
    """Measures and prints a table."""
    args = parse()
    state = jax.block_until_ready(make_state(args.gigabytes))
    size = sum(array.nbytes for array in state.values()) / 1e9
    without, with_digests = Times(lambda folder, record: None), Times(write_record)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpoints = TrainCheckpoints(Path(folder) / "checkpoints", keep=1)
        Times(write_record).measure(checkpoints, 0, state)  # warms up
        for pair in range(args.saves):
            # The kinds take turns in being first.
            for number, times in enumerate((without, with_digests)[:: (-1) ** pair], start=1):
                times.measure(checkpoints, 2 * pair + number, state)
        checkpoints.close()
    print(f"{args.saves} saves of {size:.2f} GB of each kind; medians in milliseconds")
    headings = ("blocked", "complete", "digests", "processor")
    print(f"{'':16}" + "".join(f"{heading:>12}" for heading in headings))
    print(f"{'without digests':16}{without.line()}")
    print(f"{'with digests':16}{with_digests.line()}")
    print(f"blocked + complete: {with_digests.paid() / without.paid() - 1:+.1%} with digests")


if __name__ == "__main__":
    main()
