"""CITATION.cff has what its format (version 1.2.0) asks for, and the version of the package."""

from __future__ import annotations

from pathlib import Path

import yaml

from jaxspec import __version__

ROOT = Path(__file__).parents[2]
REQUIRED = {"authors", "cff-version", "message", "title"}


def test_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= REQUIRED
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert str(citation["version"]) == __version__
    assert citation["license"] == "Apache-2.0"
    for work in (citation, *citation["references"]):
        assert work["title"] and work["type"] in ("article", "software")
        assert work["authors"] and all(author["name"] for author in work["authors"])
    cited = [reference["identifiers"][0]["value"] for reference in citation["references"]]
    readme = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert cited and all(value.removeprefix("arXiv:") in readme for value in cited)
