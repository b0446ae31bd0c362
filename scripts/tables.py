"""Writes the tables of README.md and docs/ that come from result files, or checks them.

    python scripts/tables.py            writes them anew
    python scripts/tables.py --check    ends with 1 if one is not what its file says

A table stands between two comments. The first names a view and the file:

    <!-- table: results docs/results/quickstart.json without timed_prompts -->
    | benchmark | ...
    <!-- end of table -->

Views: `results` is the table of ``eval.py``, `seeds` the mean and range over its seeds, and `plain`
the header and rows of a file {"header": [...], "rows": [[...]]}, for figures of other scripts.
``without`` and names of fields leave columns out of `results`. `reductions` shows how many times
fewer passes a diffusion language model takes with drafts: benchmarks and decoders in rows, numbers
of drafts in columns, with 95% intervals over prompts. Of the summary.json of a study,
`study` is the table of one way of decoding, `means` its lines of the mean over benchmarks, `gains`
the gains with losses in rows and benchmarks in columns, and `pairs` taus with losses in columns and
the gain of the last of them; the name of the decoding follows (after that of the target, if there
are several), then perhaps ``only`` and names of losses. `decodings` has the taus of one loss, with
ways of decoding in rows; the name of the loss follows, then perhaps ``only`` and ways of decoding:

    <!-- table: gains docs/results/study.json block16 only uniform full -->
    <!-- table: decodings docs/results/study.json full only block tree32 -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxspec.cli.configuration import run_as_command
from jaxspec.evals.report import read_json, seeds_table
from jaxspec.evals.tables import ABSENT, formatted, markdown, tabulate
from jaxspec.json_files import read_object
from jaxspec.study.summary import MEAN, Entry
from jaxspec.study.tables import decodings_table, entries_table, gains_table, pairs_table

ROOT = Path(__file__).parent.parent
_START = re.compile(r"^<!-- table:", re.MULTILINE)
_MARKED = re.compile(
    r"^<!-- table: (?P<order>.+?) -->\n(?P<table>.*?)^<!-- end of table -->$",
    re.DOTALL | re.MULTILINE,
)


def results_view(file: Path, words: Sequence[str]) -> str:
    """The table that eval.py prints of a result file, without some columns."""
    if words and words[0] != "without":
        raise ValueError(f"Got {words[0]!r} after {file}: expected 'without' and names of fields.")
    without = words[1:]
    found = tabulate(read_json(file)[1])
    unknown = set(without) - {column.field for column in found.columns}
    if unknown:
        raise ValueError(f"{file} has no columns {sorted(unknown)}: remove them after 'without'.")
    kept = [place for place, column in enumerate(found.columns) if column.field not in without]
    lines: list[list[str]] = [[line[place] for place in kept] for line in found.lines]
    return markdown([found.columns[place].title for place in kept], lines)


def seeds_view(file: Path, words: Sequence[str]) -> str:
    """The mean and range over the seeds of a result file."""
    _refuse(words, view="seeds")
    text = seeds_table(read_json(file)[1])
    if not text:
        raise ValueError(f"{file} has no loss with several seeds: use the view 'results'.")
    return text.split("\n\n", 1)[1].strip()


def reductions_view(file: Path, words: Sequence[str]) -> str:
    """Passes of the base decoder over those with drafts, and how many responses stay the same."""
    _refuse(words, view="reductions")
    drafting = [row for row in read_json(file)[1] if row.get("drafts_per_pass")]
    if not drafting:
        raise ValueError(f"{file} has no decoder with drafts: use the view 'results'.")
    sizes = sorted({row["drafts_per_pass"] for row in drafting})
    lines = []
    for names in dict.fromkeys((row["benchmark"], row["decoder"]) for row in drafting):
        rows = [row for row in drafting if (row["benchmark"], row["decoder"]) == names]
        by_size = {row["drafts_per_pass"]: row for row in rows}
        cells = [_reduction(by_size.get(size)) for size in sizes]
        same, turns = (sum(row[field] for row in rows) for field in ("identical", "turns"))
        lines.append([*names, str(rows[0]["turns"]), *cells, f"{same} of {turns}"])
    header = ["prompts", "drafts", "n", *(f"D = {size}" for size in sizes), "identical"]
    return markdown(header, lines, names=2)


def _reduction(row: dict[str, Any] | None) -> str:
    if row is None:
        return ABSENT
    figure, interval = row["nfe_reduction"], row.get("nfe_reduction_ci95")
    return f"{figure:.2f}" + (f" ({formatted(interval, '.2f')})" if interval else "")


def plain_view(file: Path, words: Sequence[str]) -> str:
    """A file's own header and rows."""
    _refuse(words, view="plain")
    document: dict[str, Any] = read_object(file)
    rows = [[str(cell) for cell in row] for row in document["rows"]]
    return markdown(document["header"], rows, names=document.get("names", 1))


def study_view(file: Path, words: Sequence[str]) -> str:
    """The lines of a study for one way of decoding."""
    return entries_table(_entries(file, words)[0])


def means_view(file: Path, words: Sequence[str]) -> str:
    """The same, only the means over benchmarks."""
    return entries_table([e for e in _entries(file, words)[0] if e["benchmark"] == MEAN])


def gains_view(file: Path, words: Sequence[str]) -> str:
    """The gains of a study for one way of decoding: losses in rows, benchmarks in columns."""
    entries, base = _entries(file, words)
    return gains_table(entries, base=base)


def pairs_view(file: Path, words: Sequence[str]) -> str:
    """The taus of a study for one way of decoding, and the gain of the last loss."""
    entries, base = _entries(file, words)
    return pairs_table(entries, base=base)


def decodings_view(file: Path, words: Sequence[str]) -> str:
    """The taus of a study for one loss: ways of decoding in rows, benchmarks in columns."""
    return decodings_table(_entries(file, words, given="loss", rows="decoding")[0])


def _entries(
    file: Path, words: Sequence[str], *, given: str = "decoding", rows: str = "loss"
) -> tuple[list[Entry], str]:
    """The lines that are wanted, and the base of their gains."""
    document = read_object(file)
    place, _, only = " ".join(words).partition(" only ")
    wanted, names = only.split(), place.split()
    study = document["study"]
    found = [
        entry
        for entry in document["summary"]
        if names in ([entry[given]], [entry["target"], entry[given]])
        and entry[rows] in (wanted or [entry[rows]])
    ]
    if {entry[rows] for entry in found} < set(wanted) or not found:
        raise ValueError(f"{file} has no lines for {' '.join(words)!r}: look at its summary.")
    if len({entry["target"] for entry in found}) > 1:
        raise ValueError(f"{file} has several targets: name one before {names[0]!r}.")
    return found, study["base"] or study["losses"][0]["name"]


VIEWS: dict[str, Callable[[Path, Sequence[str]], str]] = {
    "plain": plain_view,
    "decodings": decodings_view,
    "gains": gains_view,
    "means": means_view,
    "pairs": pairs_view,
    "reductions": reductions_view,
    "results": results_view,
    "seeds": seeds_view,
    "study": study_view,
}


def documents() -> Iterator[Path]:
    """The files that may hold tables."""
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "docs").rglob("*.md"))


def with_tables(text: str) -> str:
    """A document whose marked tables are what their files say.

    Raises:
      ValueError: a mark that cannot be read, or a file that is missing or not a result file.
    """
    if len(_START.findall(text)) != len(_MARKED.findall(text)):
        raise ValueError(
            "A '<!-- table: ... -->' line has no '<!-- end of table -->' line after it."
        )
    return _MARKED.sub(
        lambda found: (
            f"<!-- table: {found['order']} -->\n{_table(found['order'])}\n<!-- end of table -->"
        ),
        text,
    )


def _table(order: str) -> str:
    view, *rest = order.split()
    if view not in VIEWS or not rest:
        raise ValueError(
            f"Got the table {order!r}: expected a view ({', '.join(VIEWS)}) and a file."
        )
    return VIEWS[view](ROOT / rest[0], rest[1:])


def _refuse(words: Sequence[str], *, view: str) -> None:
    if words:
        raise ValueError(
            f"The view {view!r} takes nothing after its file: got {' '.join(words)!r}."
        )


def main(argv: Sequence[str]) -> int:
    """Writes the tables; with ``--check`` only says which differ, and returns 1 if any does.

    Raises:
      ValueError: see `with_tables`.
    """
    parser = argparse.ArgumentParser(description="Write the tables that come from result files.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if one differs")
    options = parser.parse_args(argv)
    stale = []
    for document in documents():
        text = document.read_text(encoding="utf-8")
        try:
            new = with_tables(text)
        except ValueError as error:
            raise ValueError(f"{document.relative_to(ROOT)}: {error}") from error
        if new != text:
            stale.append(str(document.relative_to(ROOT)))
            if not options.check:
                document.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"{name}: tables {'differ from their files' if options.check else 'written'}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(run_as_command(main, sys.argv[1:]))
