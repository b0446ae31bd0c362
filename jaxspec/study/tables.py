"""The tables of a study, from its summary: Markdown, CSV, and LaTeX with booktabs.

>>> print(markdown_text(entries, study=declaration, units="3 of 8 units"))     # doctest: +SKIP
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from jaxspec.evals.intervals import FEWEST_PROMPTS
from jaxspec.evals.tables import ABSENT, formatted, markdown
from jaxspec.names import for_markdown, for_terminal
from jaxspec.study.summary import MEAN, Entry

_WIDTH = 100
_LEGEND = f"""\
tau: tokens emitted per draft-verify round, bonus token included; mean over seeds (lowest to
highest). gain: of tau over {{base}} with the same seed, in the same way. 95%: bootstrap interval
over prompts, {FEWEST_PROMPTS} at least, of the mean over seeds. All turns of a conversation count
as one prompt. A gain's is paired, since both rows answer the same prompts. gain seeds: those that
the gain rests on, where the base lacks others. accepted: without the bonus. speed-up: wall clock at
batch 1 against the target alone, where it was measured. differ: outputs that are not the target's
own, over all seeds. repetitive: share of responses that loop, which inflates tau. mean: of the
benchmarks' taus and gains."""
_COLUMNS: tuple[tuple[str, Callable[[Entry], str]], ...] = (
    ("benchmark", lambda entry: entry["benchmark"]),
    ("loss", lambda entry: entry["loss"]),
    ("seeds", lambda entry: str(len(entry["seeds"]))),
    ("prompts", lambda entry: str(entry["prompts"])),
    ("tau", lambda entry: seeds_text(entry["tau"], ".2f")),
    ("95%", lambda entry: formatted(entry["tau_ci95"], ".2f")),
    ("gain", lambda entry: seeds_text(entry["gain"], "+.1f", unit="%")),
    ("95%", lambda entry: interval_text(entry["gain_ci95"])),
    ("gain seeds", lambda entry: gain_seeds_text(entry) or ABSENT),
    ("accepted", lambda entry: formatted(entry["accepted_per_round"], ".2f")),
    ("speed-up", lambda entry: formatted(entry["speedup"], ".2f", unit="x")),
    ("differ", lambda entry: formatted(entry["mismatched_prompts"], "d")),
    ("repetitive", lambda entry: formatted(entry["repetitive_share"], ".0%")),
)
_CONSOLE_COLUMNS = ("loss", "tau", "gain", "95%")
CSV_BEGINNING = "target,decoding,benchmark,loss,seeds,"
LATEX_BEGINNING = "% Needs \\usepackage{booktabs}."
"""What the files of a study begin with."""
_LATEX = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def seeds_text(figure: Mapping[str, float] | None, spec: str, *, unit: str = "") -> str:
    """A figure over seeds as text: the mean, and the range if there are several seeds.

    >>> seeds_text({"mean": 2.0, "lowest": 1.5, "highest": 2.5}, ".1f")
    '2.0 (1.5 to 2.5)'
    """
    if figure is None:
        return ABSENT
    mean = f"{figure['mean']:{spec}}{unit}"
    if figure["lowest"] == figure["highest"]:
        return mean
    return f"{mean} ({figure['lowest']:{spec}} to {figure['highest']:{spec}}{unit})"


def interval_text(interval: Sequence[float] | None) -> str:
    """An interval of a gain as text: signs would run into a dash.

    >>> interval_text([-1.5, 20.25])
    '-1.5 to +20.2%'
    """
    return ABSENT if interval is None else f"{interval[0]:+.1f} to {interval[1]:+.1f}%"


def gain_seeds_text(entry: Entry) -> str:
    """The seeds that a gain rests on, where these are not all of its row; "": they are.

    >>> gain_seeds_text({"seeds": [0, 1, 2], "gain": {"mean": 1.0}, "gain_seeds": [0, 1]})
    '0, 1'
    """
    seeds = entry.get("gain_seeds")  # None: an older file.
    if not entry["gain"] or seeds is None or seeds == entry["seeds"]:
        return ""
    return ", ".join(map(str, seeds))


def markdown_text(
    entries: Sequence[Entry], *, study: Mapping[str, Any], units: str, origin: str = ""
) -> str:
    """The Markdown file: a table for each target and decoding, with the meaning of its columns.

    Args:
      entries: see `jaxspec.study.summary.summary`.
      study: the declaration, as JSON holds it.
      units: a sentence that says how much of the study is done.
      origin: a sentence that says where the figures come from.
    """
    base = base_of(study)
    said = " ".join(filter(None, [units, for_markdown(origin, longest=len(origin))]))
    beginning = textwrap.fill(said, _WIDTH, break_on_hyphens=False)
    parts = [markdown_heading(study["name"]), beginning]
    for target, decoding in dict.fromkeys((e["target"], e["decoding"]) for e in entries):
        lines = [e for e in entries if (e["target"], e["decoding"]) == (target, decoding)]
        settings = next(d["settings"] for d in study["decodings"] if d["name"] == decoding)
        said = ", ".join(for_markdown(f"{name} {value}") for name, value in settings.items())
        parts += [
            f"## {for_markdown(target)}, {for_markdown(decoding)}",
            *([f"With {said}."] if said else []),
            entries_table(lines),
        ]
    legend = " ".join(_LEGEND.format(base=for_markdown(base)).split())
    return "\n\n".join([*parts, textwrap.fill(legend, _WIDTH, break_on_hyphens=False)]) + "\n"


def markdown_heading(name: str) -> str:
    """The first line of a study's Markdown file."""
    return f"# Study {for_markdown(name)}"


def base_of(study: Mapping[str, Any]) -> str:
    """The row that gains are counted against.

    Args:
      study: the declaration, as JSON holds it.
    """
    base: str = study["base"] or study["losses"][0]["name"]
    return base


def entries_table(entries: Sequence[Entry]) -> str:
    """A Markdown table with a line per entry; a column that no entry fills is left out."""
    columns = [
        (title, cell) for title, cell in _COLUMNS if any(cell(each) != ABSENT for each in entries)
    ]
    lines = [[cell(entry) for _, cell in columns] for entry in entries]
    return markdown([title for title, _ in columns], lines)


def gains_table(entries: Sequence[Entry], *, base: str) -> str:
    """A Markdown table of gains with their intervals: losses in rows, benchmarks in columns.

    Args:
      entries: those of one target and decoding.
      base: the row that gains are counted against; it shows its tau.
    """

    def cell(entry: Entry) -> str:
        if entry["loss"] == base:
            return f"tau {entry['tau']['mean']:.2f}" if entry["tau"] else ABSENT
        if entry["gain"] is None:
            return ABSENT
        text, interval = f"{entry['gain']['mean']:+.1f}%", entry["gain_ci95"]
        return text if interval is None else f"{text} ({interval[0]:+.1f} to {interval[1]:+.1f})"

    return _by_benchmark(entries, rows="loss", cell=cell)


def pairs_table(entries: Sequence[Entry], *, base: str) -> str:
    """A Markdown table of taus: benchmarks in rows, losses and the gain of the last one in columns.

    Args:
      entries: those of one target and decoding.
      base: the row that gains are counted against.
    """
    losses = list(dict.fromkeys(entry["loss"] for entry in entries))
    table = {(entry["loss"], entry["benchmark"]): entry for entry in entries}
    lines = []
    for benchmark in dict.fromkeys(entry["benchmark"] for entry in entries):
        found = [table.get((loss, benchmark)) for loss in losses]
        taus = [seeds_text(entry and entry["tau"], ".2f") for entry in found]
        last = found[-1]
        lines.append([benchmark, *taus, seeds_text(last and last["gain"], "+.1f", unit="%")])
    return markdown(["prompts", *losses, f"{losses[-1]} over {base}"], lines, names=1)


def decodings_table(entries: Sequence[Entry]) -> str:
    """A Markdown table of taus: ways of decoding in rows, benchmarks in columns.

    Args:
      entries: those of one target and loss.
    """

    def cell(entry: Entry) -> str:
        if entry["tau"] is None:
            return ABSENT
        text, interval = f"{entry['tau']['mean']:.2f}", entry["tau_ci95"]
        return text if interval is None else f"{text} ({formatted(interval, '.2f')})"

    return _by_benchmark(entries, rows="decoding", cell=cell)


def _by_benchmark(entries: Sequence[Entry], *, rows: str, cell: Callable[[Entry], str]) -> str:
    """A Markdown table with benchmarks in columns; `rows` is the field that rows are named by."""
    benchmarks = list(dict.fromkeys(entry["benchmark"] for entry in entries))
    table = {(entry[rows], entry["benchmark"]): cell(entry) for entry in entries}
    lines = [
        [name, *(table.get((name, benchmark), ABSENT) for benchmark in benchmarks)]
        for name in dict.fromkeys(entry[rows] for entry in entries)
    ]
    return markdown([rows, *benchmarks], lines, names=1)


@dataclass(frozen=True)
class ConsoleTable:
    """Lines for a terminal: below a heading for what varies, a line per loss.

    Args:
      parts: the lines under each heading. "" stands for none.
    """

    parts: Mapping[str, Sequence[Sequence[str]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [_CONSOLE_COLUMNS, *chain.from_iterable(self.parts.values())]
        widths = [max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]
        # In a narrow terminal, ranges break between two numbers, and each part has its own widths.
        fits = sum(widths) + 2 * (len(widths) - 1) <= options.max_width
        for place, (heading, part) in enumerate(self.parts.items()):
            table = Table(
                box=None, pad_edge=False, header_style="bold", show_header=place == 0 or not fits
            )
            for column, (title, width) in enumerate(zip(_CONSOLE_COLUMNS, widths, strict=True)):
                table.add_column(
                    title,
                    justify="right" if column else "left",
                    no_wrap=column == 0,  # names never break
                    overflow="fold",
                    min_width=width if fits else None,
                )
            for cells in part:
                table.add_row(*map(Text, cells))
            if heading:
                yield Text(heading, style="bold")
            yield table


def console_table(entries: Sequence[Entry], *, only_means: bool = True) -> ConsoleTable:
    """Lines for a terminal.

    Args:
      entries: see `jaxspec.study.summary.summary`.
      only_means: shows the means over benchmarks only, except for targets and ways of decoding
        that have none.
    """
    tables = {(e["target"], e["decoding"]) for e in entries if e["benchmark"] == MEAN}
    shown = [
        entry
        for entry in entries
        if not only_means
        or entry["benchmark"] == MEAN
        or (entry["target"], entry["decoding"]) not in tables
    ]
    varied = [
        name
        for name in ("target", "decoding", "benchmark")
        if len({entry[name] for entry in shown}) > 1
    ]
    parts: dict[str, list[list[str]]] = {}
    for entry in shown:
        heading = ", ".join(for_terminal(entry[name]) for name in varied)
        seeds = gain_seeds_text(entry)
        parts.setdefault(heading, []).append(
            [
                for_terminal(entry["loss"]),
                seeds_text(entry["tau"], ".2f"),
                seeds_text(entry["gain"], "+.1f", unit="%")
                + (f" on seeds {seeds} only" if seeds else ""),
                interval_text(entry["gain_ci95"]),
            ]
        )
    return ConsoleTable(parts)


def csv_text(entries: Sequence[Entry], *, commits: Callable[[Entry], str] | None = None) -> str:
    """One line per entry, one column per number; "" where something was not measured.

    Args:
      entries: see `jaxspec.study.summary.summary`.
      commits: gives the last column: those that an entry comes from.
    """
    lines = [
        {**_flat(entry), **({"commits": commits(entry)} if commits else {})} for entry in entries
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def latex_text(entries: Sequence[Entry], *, base: str, origin: str = "") -> str:
    """A table with booktabs for each target and decoding: losses in rows, benchmarks in columns.

    Args:
      entries: see `jaxspec.study.summary.summary`.
      base: the row that gains are counted against.
      origin: a comment that says where the figures come from.
    """
    first = f"{LATEX_BEGINNING} tau: mean over seeds; gain: of the mean, paired."
    parts = ["\n% ".join(filter(None, [first, origin]))]
    for target, decoding in dict.fromkeys((e["target"], e["decoding"]) for e in entries):
        own = [e for e in entries if (e["target"], e["decoding"]) == (target, decoding)]
        parts.append(_latex_table(own, base=base, title=f"{target}, {decoding}"))
    return "\n\n".join(parts) + "\n"


def _latex_table(entries: Sequence[Entry], *, base: str, title: str) -> str:
    benchmarks = list(dict.fromkeys(entry["benchmark"] for entry in entries))
    table = {(entry["loss"], entry["benchmark"]): entry for entry in entries}
    last = MEAN if MEAN in benchmarks else benchmarks[-1]
    header = ["loss", "seeds", *benchmarks, "gain"]
    lines = []
    for loss in dict.fromkeys(entry["loss"] for entry in entries):
        found = [table.get((loss, benchmark)) for benchmark in benchmarks]
        taus = [
            f"{entry['tau']['mean']:.2f}" if entry and entry["tau"] else "--" for entry in found
        ]
        counts = sorted({len(entry["seeds"]) for entry in found if entry})
        seeds = "--".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
        lines.append([for_latex(loss), seeds, *taus, _latex_gain(table.get((loss, last)))])
    rows = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{for_latex(title)}: accepted length, and gain over {for_latex(base)} "
            rf"({for_latex(last)}; 95\% over prompts).}}",
            rf"\begin{{tabular}}{{lr{'r' * len(benchmarks)}l}}",
            r"\toprule",
            " & ".join(map(for_latex, header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_gain(entry: Entry | None) -> str:
    if entry is None or entry["gain"] is None:
        return "--"
    text = rf"${entry['gain']['mean']:+.1f}\%$"
    if entry["gain_ci95"] is not None:
        low, high = entry["gain_ci95"]
        text += f" $[{low:+.1f}, {high:+.1f}]$"
    seeds = gain_seeds_text(entry)
    return f"{text} (seeds {seeds} only)" if seeds else text


def for_latex(name: str) -> str:
    r"""A name as text in LaTeX.

    >>> print(for_latex("decay_10 & 5%"))
    decay\_10 \& 5\%
    """
    return "".join(_LATEX.get(char, char) for char in for_terminal(name))


def _flat(entry: Entry) -> dict[str, Any]:
    """An entry with one field per number."""

    def over_seeds(name: str) -> dict[str, Any]:
        figure = entry[name] or {}
        return {f"{name}_{part}": figure.get(part, "") for part in ("mean", "lowest", "highest")}

    def interval(name: str) -> dict[str, Any]:
        low, high = entry[name] or ("", "")
        return {f"{name}_low": low, f"{name}_high": high}

    plain = {
        name: "" if entry[name] is None else entry[name]
        for name in (*("accepted_per_round", "speedup", "mismatched_prompts", "repetitive_share"),)
    }
    return {
        **{name: entry[name] for name in ("target", "decoding", "benchmark", "loss")},
        "seeds": " ".join(map(str, entry["seeds"])),
        "prompts": entry["prompts"],
        **over_seeds("tau"),
        **interval("tau_ci95"),
        **over_seeds("gain"),
        **interval("gain_ci95"),
        "gain_seeds": " ".join(map(str, entry["gain_seeds"])),
        **plain,
    }
