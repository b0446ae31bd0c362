"""How fast `jaxspec import-data` is, and how much memory it takes: rows of about 1 kB, made here.

    python benchmarks/import_rows.py
    python benchmarks/import_rows.py --rows 1000000 --format json --folder runs/import

The rows are conversations of 2 to 6 turns in OpenAI's `messages` format. The memory is the most
that the process has held, with everything it imports; --rows 1 shows what it takes without rows.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "block",
    "token",
    "draft",
    "target",
    "round",
    "model",
    "answer",
    "question",
    "is",
    "was",
    "with",
    "more",
    "then",
]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the file (100,000)")
    parser.add_argument("--format", choices=("jsonl", "json", "parquet"), default="jsonl")
    parser.add_argument("--folder", help="where to write (the system's temporary folder)")
    return parser.parse_args()


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Conversations of about 1 kB, no two alike."""
    rng = random.Random(0)
    for number in range(count):
        turns, size = [], rng.choice((2, 4, 6))
        for turn in range(size):
            text = " ".join(rng.choices(WORDS, k=180 // size))
            role = "assistant" if turn % 2 else "user"
            turns.append({"role": role, "content": f"{number}: {text}"})
        yield {"messages": turns}


def write(file: Path, count: int) -> None:
    """Writes the rows in the format of the file's ending."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows(count))), file, row_group_size=10_000)
        return
    is_list = file.suffix == ".json"
    with file.open("w", encoding="utf-8") as opened:
        for number, row in enumerate(rows(count)):
            opened.write(("[" if number == 0 else ",\n") if is_list else "")
            opened.write(json.dumps(row) + ("" if is_list else "\n"))
        opened.write("]\n" if is_list else "")


def main() -> None:
    """Makes the file, imports it in a process of its own and prints what that took."""
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        file = Path(folder) / f"rows.{arguments.format}"
        write(file, arguments.rows)
        size = file.stat().st_size
        print(f"{arguments.rows:,} rows, {size / 1e6:,.1f} MB of {arguments.format}", flush=True)
        command = [sys.executable, "-m", "jaxspec.cli.main", "import-data", str(file)]
        subprocess.run([*command, "--output", f"{folder}/imported"], check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"peak memory {peak / 1e6:,.0f} MB, processor time {used.ru_utime:.1f} s")


if __name__ == "__main__":
    main()
