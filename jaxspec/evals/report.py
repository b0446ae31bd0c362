"""What an evaluation leaves behind: the result file (JSON), a table, and plots.

>>> write_report("runs/results.json", provenance=provenance, results=rows)     # doctest: +SKIP
[PosixPath('runs/results.json'), PosixPath('runs/results.md'), ...]
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from jaxspec.evals.results import (
    BASELINE,
    FULL,
    Row,
    check_results,
    gains,
    labels,
    ordered,
    varies,
)
from jaxspec.evals.tau import DEFINITIONS
from jaxspec.provenance import write_json as write_json_whole

_ABSENT = "–"
# Ten columns must fit into the 80 of a plain terminal.
_CONSOLE_TITLES = {"prompts": "n", "accepted": "acc.", "speedup": "speed", "repetitive": "loops"}
_LEGEND = f"""\
tau: tokens emitted per draft-verify round, bonus token included, over all rounds, with a 95%
bootstrap interval over prompts. macro: mean of each response's own mean. accepted: without the
bonus. gain: of tau over the {BASELINE} row. speedup: wall clock at batch 1 against the target's own
decoding in the same run. differ: prompts whose output is not the target's own."""
_LEGEND_DEFINITIONS = """\
Of each draft-verify round: e tokens and a drafts that stand in the response, v drafts that
verification accepted before a stop token or the limit cut it. The prefill's token is in none."""
_LEGEND_REPETITIVE = "repetitive: share of responses that loop, which inflates tau."


def write_json(
    path: str | os.PathLike[str], *, provenance: Mapping[str, Any], results: Sequence[Row]
) -> Path:
    """Writes {"provenance", "results"}, whole or not at all.

    Raises:
      ValueError: rows refused by `check_results`.
    """
    check_results(results)
    write_json_whole(path, {"provenance": provenance, "results": results})
    return Path(path)


def read_json(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns (provenance, results) of a result file.

    Raises:
      ValueError: no such file, or not a result file.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"No result file at {os.fspath(path)!r}: eval.py --output writes one.")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{os.fspath(path)!r} is no JSON, or was cut off: {error}") from error
    if not isinstance(document, dict) or not {"provenance", "results"} <= document.keys():
        raise ValueError(
            f"{os.fspath(path)!r} is no result file: expected an object with "
            '"provenance" and "results".'
        )
    check_results(document["results"])
    return document["provenance"], document["results"]


def write_report(
    output: str | os.PathLike[str],
    *,
    provenance: Mapping[str, Any],
    results: Sequence[Row],
    notes: Sequence[str] = (),
) -> list[Path]:
    """Writes the JSON file, and beside it the Markdown table and both plots.

    Args:
      output: the JSON file; the others take its name with other endings.
      provenance: where the figures come from.
      results: measured rows, at least one.
      notes: paragraphs to stand under the table.

    Returns:
      The files, the JSON file first.
    """
    # matplotlib takes a second to import: only who plots pays.
    from jaxspec.evals import plots

    json_file = write_json(output, provenance=provenance, results=results)
    stem = json_file.with_suffix("")
    markdown_file = json_file.with_suffix(".md")
    tables = (markdown_table(results), definitions_table(results), seeds_table(results))
    text = "\n".join([*filter(None, tables), *(f"{note}\n" for note in notes)])
    markdown_file.write_text(text, encoding="utf-8")
    return [
        json_file,
        markdown_file,
        plots.plot_accepted_length(results, f"{stem}_accepted_length.png"),
        plots.plot_conditional_acceptance(results, f"{stem}_acceptance_by_position.png"),
    ]


def markdown_table(results: Sequence[Row]) -> str:
    """The table as Markdown, with the meaning of its columns under it."""
    header, lines = _cells(results)
    table = _markdown(header, lines)
    legend = f"{_LEGEND}\n{_LEGEND_REPETITIVE}" if "repetitive" in header else _LEGEND
    return f"{table}\n\n{legend}\n"


def definitions_table(results: Sequence[Row]) -> str:
    """Markdown: tau of the same rounds by each definition; "" where no row has the field."""
    rows = ordered(results)
    named = {name for row in rows for name in row.get("tau_definitions", {})}
    columns = [name for name in DEFINITIONS if name in named]
    if not columns:
        return ""
    settings = _settings(rows)
    lines = [
        [row["benchmark"], label, *(_short(row[name]) for name in settings)]
        + [_format(row["tau_definitions"].get(name), ".2f") for name in columns]
        for row, label in zip(rows, labels(rows), strict=True)
        if "tau_definitions" in row
    ]
    header = ["benchmark", "loss", *(name.replace("_", " ") for name in settings), *columns]
    legend = "\n".join(f"- `{name}`: {DEFINITIONS[name]}." for name in columns)
    table = _markdown(header, lines)
    return f"tau by definition:\n\n{table}\n\n{_LEGEND_DEFINITIONS}\n\n{legend}\n"


def seeds_table(results: Sequence[Row]) -> str:
    """Markdown: mean and range over the seeds of each loss; "" where no loss has several.

    A seed's gain is over the baseline of the same seed. The mean over benchmarks is taken within a
    seed first.
    """
    rows = ordered(results)
    taus: dict[tuple[str, str], dict[int, float]] = {}
    seed_gains: dict[tuple[str, str], dict[int, float]] = {}
    for row, gain in zip(rows, gains(rows), strict=True):
        if row.get("seed") is not None:
            key = (row["benchmark"], row["loss"])
            taus.setdefault(key, {})[row["seed"]] = row["tau_micro"]
            if gain is not None:
                seed_gains.setdefault(key, {})[row["seed"]] = gain
    settings = {(row["temperature"], row["block_size"], row["target"]) for row in rows}
    if len(settings) > 1 or all(len(values) < 2 for values in taus.values()):
        return ""
    benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in taus))
    losses = list(dict.fromkeys(loss for _, loss in taus))
    if len(benchmarks) > 1:
        for table in (taus, seed_gains):
            for loss in losses:
                each = [table.get((benchmark, loss), {}) for benchmark in benchmarks]
                shared = set.intersection(*map(set, each))
                table["mean", loss] = {
                    seed: math.fsum(values[seed] for values in each) / len(each)
                    for seed in sorted(shared)
                }
    lines = [
        [benchmark, loss, str(len(values)), _range(values, ".2f"), _range(gain, "+.1f", unit="%")]
        for (benchmark, loss), values in taus.items()
        if values
        for gain in [seed_gains.get((benchmark, loss), {})]
    ]
    return "Over seeds, mean (lowest to highest):\n\n" + (
        _markdown(["benchmark", "loss", "seeds", "tau", "gain"], lines) + "\n"
    )


def _range(by_seed: Mapping[int, float], spec: str, *, unit: str = "") -> str:
    if not by_seed:
        return _ABSENT
    values = list(by_seed.values())
    mean = math.fsum(values) / len(values)
    return f"{mean:{spec}}{unit} ({min(values):{spec}} to {max(values):{spec}}{unit})"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (header, rule, *lines)
    )


def console_table(results: Sequence[Row]) -> Table:
    """The same table for a terminal."""
    header, lines = _cells(results)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for column, title in enumerate(header):
        is_name = column < 2
        table.add_column(
            _CONSOLE_TITLES.get(title, title),
            justify="left" if is_name else "right",
            no_wrap=not is_name,
        )
    previous = ""
    for benchmark, label, *figures in lines:
        if previous and benchmark != previous:
            table.add_row()
        shown = (benchmark if benchmark != previous else "", label, *figures)
        is_full = label == FULL or label.startswith(f"{FULL} (")
        table.add_row(*map(escape, shown), style="bold" if is_full else None)
        previous = benchmark
    return table


def _cells(results: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: one line a row, then the mean over benchmarks of each loss.

    Settings that all rows share (temperature, block size, target) are left out.
    """
    rows = ordered(results)
    settings = _settings(rows)
    with_repetitive = any(row.get("repetitive_share") is not None for row in rows)
    header = ["benchmark", "loss", *(name.replace("_", " ") for name in settings)]
    header += ["prompts", "tau (95%)", "macro", "accepted", "gain", "speedup", "differ"]
    header += ["repetitive"] if with_repetitive else []

    lines: list[list[str]] = []
    groups: dict[tuple[str, ...], list[tuple[Row, float | None]]] = {}
    for row, label, gain in zip(rows, labels(rows), gains(rows), strict=True):
        key = (label, *(_short(row[name]) for name in settings))
        groups.setdefault(key, []).append((row, gain))
        low, high = row["tau_ci95"]
        interval = f" ({low:.2f}–{high:.2f})"
        lines.append([row["benchmark"], *key, *_figures([row], [gain], interval, with_repetitive)])

    benchmarks = {row["benchmark"] for row in rows}
    for key, group in groups.items():
        # A mean over other benchmarks than its neighbours' would mislead.
        if len(benchmarks) > 1 and {row["benchmark"] for row, _ in group} == benchmarks:
            members, member_gains = zip(*group, strict=True)
            lines.append(["mean", *key, *_figures(members, member_gains, "", with_repetitive)])
    return header, lines


def _settings(rows: Sequence[Row]) -> list[str]:
    """Settings in which rows differ."""
    return [name for name in ("temperature", "block_size", "target") if varies(rows, name)]


def _figures(
    rows: Sequence[Row], row_gains: Sequence[float | None], interval: str, with_repetitive: bool
) -> list[str]:
    """The figures of one row, or of several: counts added up, the rest averaged."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else None

    def of(name: str) -> float | None:
        return mean([row.get(name) for row in rows])

    differ = [row["mismatched_prompts"] for row in rows if row["mismatched_prompts"] is not None]
    share = of("repetitive_share")
    figures = [
        str(sum(row["prompts"] for row in rows)),
        _format(of("tau_micro"), ".2f") + interval,
        _format(of("tau_macro"), ".2f"),
        _format(of("accepted_per_round"), ".2f"),
        _format(mean(row_gains), "+.1f", unit="%"),
        _format(of("speedup"), ".2f", unit="x"),
        str(sum(differ)) if differ else _ABSENT,
    ]
    if with_repetitive:
        figures.append(_format(share, ".0%"))
    return figures


def _format(value: float | None, spec: str, *, unit: str = "") -> str:
    return _ABSENT if value is None else f"{value:{spec}}{unit}"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
