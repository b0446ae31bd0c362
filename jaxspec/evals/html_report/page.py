"""The page itself: reads result files, and fills the template.

It is one file that loads nothing: style, script and plots are in it. What comes from the result
files is escaped everywhere.

>>> write_page(["runs/results.json"], "runs/results.html")                     # doctest: +SKIP
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxspec import __version__
from jaxspec.evals.html_report import diffusion, drafters
from jaxspec.evals.html_report.content import Fact, Section
from jaxspec.evals.html_report.measured import Measured, read_files
from jaxspec.evals.html_report.origin import origin_of
from jaxspec.evals.html_report.results_table import results_section
from jaxspec.evals.html_report.rounds import Trace, traces_of
from jaxspec.evals.html_report.svg import shown
from jaxspec.files import write_text

_FOLDER = Path(__file__).parent / "page"


@dataclasses.dataclass(frozen=True)
class Part:
    """What a page says of drafters, or of decoders of diffusion language models."""

    id: str
    title: str
    """"" where it is the only part."""
    facts: list[Fact]
    sections: list[Section]
    traces: list[Trace]
    """Answers round by round."""
    has_rounds: bool
    """False: decoders of diffusion language models have no rounds."""


def write_page(paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Writes the page of one or more result files.

    Args:
      paths: the files that eval.py wrote.
      output: the HTML file.

    Raises:
      ValueError: see `read_files`.
    """
    write_text(output, page_of(read_files(paths)))


def page_of(files: Sequence[Measured]) -> str:
    """The page as text.

    Args:
      files: at least one.
    """
    template = _environment().get_template("page.html.jinja")
    style, script = _asset("page.css"), _asset("page.js")
    by_file: dict[str, list[Measured]] = {}
    for file in files:
        by_file.setdefault(file.file, []).append(file)
    targets = list(dict.fromkeys(row["target"] for file in files for row in file.rows))
    return template.render(
        version=__version__,
        title=", ".join(targets),
        parts=_parts(files),
        origins=[origin_of(name, members) for name, members in by_file.items()],
        style=style,
        script=script,
        policy=_policy(style=style, script=script),
    )


def _parts(files: Sequence[Measured]) -> list[Part]:
    of_drafters = [file for file in files if not file.is_diffusion]
    of_diffusion = [file for file in files if file.is_diffusion]
    are_both = bool(of_drafters and of_diffusion)
    found = []
    if of_drafters:
        rows = [row for file in of_drafters for row in file.rows]
        sections = [*results_section(of_drafters), *drafters.sections(rows)]
        title = "Drafters" if are_both else ""
        shown_facts, traces = drafters.facts(rows), traces_of(rows)
        found.append(Part("drafters", title, shown_facts, sections, traces, has_rounds=True))
    if of_diffusion:
        rows = [row for file in of_diffusion for row in file.rows]
        sections = [*results_section(of_diffusion), *diffusion.sections(rows)]
        title = "Diffusion language models" if are_both else ""
        shown_facts = diffusion.facts(rows)
        found.append(Part("diffusion", title, shown_facts, sections, [], has_rounds=False))
    return found


def _policy(*, style: str, script: str) -> str:
    """Lets a browser apply this style, run this script, and load nothing at all."""
    digests = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("style", style), ("script", script))
    }
    allowed = [f"{name}-src 'sha256-{digest}'" for name, digest in digests.items()]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _asset(name: str) -> Markup:
    """A file of this package, to be put into the page as it is."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )


def _finalized(value: Any) -> Any:
    """Text without control characters; what is markup already stays."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value
