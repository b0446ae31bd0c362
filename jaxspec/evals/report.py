"""What an evaluation writes: the result file (JSON), tables in Markdown, plots.

The rows say what they are of: drafters, or decoders of a diffusion language model.

>>> write_report("runs/results.json", provenance=provenance, results=rows)     # doctest: +SKIP
[PosixPath('runs/results.json'), PosixPath('runs/results.md'), ...]
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.evals.intervals import FEWEST_ROUNDS
from jaxspec.evals.results import (
    Row,
    check_results,
    gains,
    is_diffusion,
    is_untrained,
    labels,
    ordered,
)
from jaxspec.evals.tables import (
    ABSENT,
    formatted,
    markdown,
    markdown_table,
    range_text,
    settings_columns,
)
from jaxspec.evals.tau import DEFINITIONS
from jaxspec.files import write_text
from jaxspec.json_files import LARGEST_OF_RESULTS, read_object
from jaxspec.paths import user_path
from jaxspec.provenance import write_json as write_json_whole

_LEGEND_DEFINITIONS = """\
Of each draft-verify round: e tokens and a drafts that are in the response, v drafts that
verification accepted before a stop token or the limit cut it. The prefill's token is in none."""


def write_json(
    path: str | os.PathLike[str], *, provenance: Mapping[str, Any], results: Sequence[Row]
) -> Path:
    """Writes {"provenance", "results"}, whole or not at all.

    Raises:
      ValueError: rows refused by `check_results`.
    """
    check_results(results)
    write_json_whole(path, {"provenance": provenance, "results": results})
    return user_path(path)


def read_json(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns (provenance, results) of a result file, of either kind of evaluation.

    Raises:
      ValueError: no such file, or not a result file.
    """
    file = user_path(path)
    if not file.is_file():
        raise ValueError(f"No result file at {os.fspath(path)!r}: eval.py --output writes one.")
    document = read_object(file, largest=LARGEST_OF_RESULTS)
    if not {"provenance", "results"} <= document.keys():
        raise ValueError(
            f"{os.fspath(path)!r} is not a result file: expected an object with "
            '"provenance" and "results".'
        )
    for key, kind, expected in (("provenance", dict, "an object"), ("results", list, "a list")):
        if not isinstance(document[key], kind):
            got = type(document[key]).__name__
            raise ValueError(f"{os.fspath(path)!r}: {key} must be {expected}: got {got}.")
    refusal = f"{os.fspath(path)!r} is damaged, or was not written by eval.py"
    check_results(document["results"], refusal=refusal)
    return document["provenance"], document["results"]


def write_report(
    output: str | os.PathLike[str],
    *,
    provenance: Mapping[str, Any],
    results: Sequence[Row],
    notes: Sequence[str] = (),
) -> list[Path]:
    """Writes the JSON file and, next to it, the tables in Markdown; of drafters also two plots.

    Args:
      output: the JSON file; the others have its name with other endings.
      provenance: where the figures come from.
      results: measured rows, at least one.
      notes: paragraphs to put under the tables.

    Returns:
      The files, the JSON file first.

    Raises:
      ValueError: no rows, or rows refused by `check_results`.
    """
    if not results:
        raise ValueError("There is nothing to write: got no result rows.")
    json_file = write_json(output, provenance=provenance, results=results)
    markdown_file = json_file.with_suffix(".md")
    write_text(markdown_file, report_text(results, notes=notes))
    files = [json_file, markdown_file]
    if not is_diffusion(results[0]):
        # matplotlib takes a second to import: only who plots pays.
        from jaxspec.evals import plots

        stem = json_file.with_suffix("")
        files += [
            plots.plot_accepted_length(results, f"{stem}_accepted_length.png"),
            plots.plot_conditional_acceptance(results, f"{stem}_acceptance_by_position.png"),
        ]
    return files


def report_text(results: Sequence[Row], *, notes: Sequence[str] = ()) -> str:
    """The Markdown file: the table with its legend, the further tables, and the notes."""
    tables = [markdown_table(results)]
    if any(map(is_diffusion, results)):
        tables += [depths_table(results)]
    else:
        tables += [definitions_table(results), seeds_table(results)]
    return "\n".join([*filter(None, tables), *(f"{note}\n" for note in notes)])


def definitions_table(results: Sequence[Row]) -> str:
    """Markdown: tau of the same rounds by each definition; "" where no row has the field."""
    rows = ordered(results)
    named = {name for row in rows for name in row.get("tau_definitions", {})}
    columns = [name for name in DEFINITIONS if name in named]
    if not columns:
        return ""
    settings = settings_columns(rows)
    lines = [
        [row["benchmark"], label, *(formatted(row[column.field]) for column in settings)]
        + [formatted(row["tau_definitions"].get(name), ".2f") for name in columns]
        for row, label in zip(rows, labels(rows), strict=True)
        if "tau_definitions" in row
    ]
    header = ["benchmark", "loss", *(column.title for column in settings), *columns]
    legend = "\n".join(f"- `{name}`: {DEFINITIONS[name]}." for name in columns)
    table = markdown(header, lines)
    return f"tau by definition:\n\n{table}\n\n{_LEGEND_DEFINITIONS}\n\n{legend}\n"


SEEDS_HEADER = ("benchmark", "loss", "seeds", "tau", "gain")


def seeds_table(results: Sequence[Row]) -> str:
    """Markdown: `seeds_lines` as a table; "" where no loss has several seeds."""
    lines = seeds_lines(results)
    if not lines:
        return ""
    return f"Over seeds, mean (lowest to highest):\n\n{markdown(SEEDS_HEADER, lines)}\n"


def seeds_lines(results: Sequence[Row]) -> list[list[str]]:
    """Mean and range over the seeds of each loss; [] where no loss has several.

    A seed's gain is over the baseline of the same seed. The mean over benchmarks is taken within a
    seed first. Rows of diffusion language models have no losses, and of two drafters with the same
    loss and seed, neither stands for the seed.
    """
    if any(map(is_diffusion, results)):
        return []
    # Prompt look-up and the like have no seeds, and settings of their own.
    rows = [row for row in ordered(results) if not is_untrained(row)]
    taus: dict[tuple[str, str], dict[int, float]] = {}
    seed_gains: dict[tuple[str, str], dict[int, float]] = {}
    for row, gain in zip(rows, gains(rows), strict=True):
        if row.get("seed") is not None:
            key = (row["benchmark"], row["loss"])
            taus.setdefault(key, {})[row["seed"]] = row["tau_micro"]
            if gain is not None:
                seed_gains.setdefault(key, {})[row["seed"]] = gain
    losses = {loss for _, loss in taus}
    # Losses without seeds may have other settings; older rows of prompt look-up name no kind.
    alike = [row for row in rows if row["loss"] in losses]
    settings = {(row["temperature"], row["block_size"], row["target"]) for row in alike}
    names = [(row["benchmark"], row["loss"], row.get("seed")) for row in alike]
    if len(settings) > 1 or len(set(names)) < len(names):
        return []
    if all(len(values) < 2 for values in taus.values()):
        return []
    benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in taus))
    if len(benchmarks) > 1:
        for table in (taus, seed_gains):
            for loss in dict.fromkeys(loss for _, loss in taus):
                each = [table.get((benchmark, loss), {}) for benchmark in benchmarks]
                shared = set.intersection(*map(set, each))
                table["mean", loss] = {
                    seed: math.fsum(values[seed] for values in each) / len(each)
                    for seed in sorted(shared)
                }
    return [
        [
            *(benchmark, loss, str(len(values))),
            range_text(values.values(), ".2f"),
            range_text(gain.values(), "+.1f", unit="%"),
        ]
        for (benchmark, loss), values in taus.items()
        if values
        for gain in [seed_gains.get((benchmark, loss), {})]
    ]


def depths_table(results: Sequence[Row]) -> str:
    """Markdown: accepted depth of diffusion decoders by block; "" if nothing was drafted.

    A depth that rests on fewer than `FEWEST_ROUNDS` passes with drafts is left out.
    """
    drafted = [row for row in results if row["drafts_per_pass"]]
    if not drafted:
        return ""
    depths = [
        [
            depth if passes >= FEWEST_ROUNDS else None
            for depth, passes in zip(
                row["accepted_depth_by_block"], drafted_passes(row), strict=True
            )
        ]
        for row in drafted
    ]
    too_few = f"fewer than {FEWEST_ROUNDS} passes with drafts"
    if not any(depth is not None for row_depths in depths for depth in row_depths):
        return f"Accepted depth by block: not shown, as every block had {too_few}.\n"
    blocks = max(map(len, depths))
    header = ["benchmark", "decoder", "D", *(str(number + 1) for number in range(blocks))]
    lines = [
        [row["benchmark"], row["decoder"], str(row["drafts_per_pass"])]
        + [formatted(depth, ".2f") for depth in row_depths]
        + [ABSENT] * (blocks - len(row_depths))
        for row, row_depths in zip(drafted, depths, strict=True)
    ]
    table = markdown(header, lines, names=len(header))
    return f"Accepted depth by block ({ABSENT}: {too_few}):\n\n{table}\n"


def drafted_passes(row: Row) -> list[int]:
    """Passes with drafts of each block: all but the first pass of each response.

    Older files do not say how many responses reached a block; there, these are the fewest passes
    possible.
    """
    passes = row["nfe_by_block"]
    reached = row.get("reached_by_block", [row["turns"]] * len(passes))
    return [made - first for made, first in zip(passes, reached, strict=True)]
