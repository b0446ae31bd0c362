"""Rows per second and memory of `jaxspec import-data`, on generated conversations.

    python benchmarks/import_rows.py                       # 100,000 rows of about 1 kB
    python benchmarks/import_rows.py --rows 1000000 --form sharegpt

The import runs in a process of its own, whose largest resident set is printed. An import of 10 rows
says how much of that are the program and its libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WORDS = "the of a to in is that for it as was with be by on not he his but at are this have from"


def rows(count: int, *, form: str) -> Iterator[dict[str, Any]]:
    """Conversations of one question and an answer, about 1 kB each."""
    rng, words = random.Random(0), _WORDS.split()
    for number in range(count):
        question = f"Question {number}: {' '.join(rng.choices(words, k=40))}?"
        answer = " ".join(rng.choices(words, k=190)) + "."
        if form == "messages":
            yield {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
        else:
            yield {
                "conversations": [
                    {"from": "human", "value": question},
                    {"from": "gpt", "value": answer},
                ]
            }


def write(path: Path, count: int, *, form: str) -> None:
    """Writes the rows as JSON lines, or a ShareGPT list."""
    with path.open("w", encoding="utf-8") as file:
        if form == "messages":
            file.writelines(json.dumps(row) + "\n" for row in rows(count, form=form))
            return
        file.write("[")
        for number, row in enumerate(rows(count, form=form)):
            file.write(",\n" * (number > 0) + json.dumps(row))
        file.write("]\n")


def measure(folder: Path, count: int, *, form: str) -> int:
    """Imports `count` rows in a process of its own; returns its peak memory in bytes."""
    source = folder / f"rows-{count}.{'jsonl' if form == 'messages' else 'json'}"
    write(source, count, form=form)
    print(f"{count:,} rows, {source.stat().st_size / 1e6:.1f} MB", flush=True)
    command = [sys.executable, "-m", "jaxspec.cli.main", "import-data", str(source)]
    process = subprocess.Popen([*command, "--output", str(folder / f"out-{count}")])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return usage.ru_maxrss * 1024


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--form", choices=("messages", "sharegpt"), default="messages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        smallest = measure(Path(folder), 10, form=options.form)
        largest = measure(Path(folder), options.rows, form=options.form)
    print(
        f"Peak memory: {largest / 1e6:.0f} MB, of which the program itself {smallest / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
