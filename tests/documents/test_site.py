"""The documentation site builds without a warning, needs no network, and shows what is public."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxspec.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
MISSING = [
    name
    for name in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")
    if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not installed: {', '.join(MISSING)} (bash scripts/setup_venv.sh test,dev,docs)",
)
SHOWN_WHOLE = ("losses", "verify", "decoding")
"""Packages whose ``__all__`` is on their page of the reference."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        ["bash", "scripts/build_docs.sh", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Page(HTMLParser):
    """Ids of a page, and the addresses that a browser fetches to show it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.fetched: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if tag in ("script", "img", "iframe", "source"):
            self.fetched.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.fetched.append(given.get("href") or "")


def test_no_page_needs_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    outside = {
        f"{page.relative_to(site)}: {address}"
        for page in pages
        for address in Page(page).fetched
        if re.match(r"(https?:)?//", address)
    }
    assert not outside, "\n".join(sorted(outside))


@pytest.mark.parametrize("package", SHOWN_WHOLE)
def test_the_reference_has_every_public_name(site, package):
    ids = Page(site / "reference" / f"{package}.html").ids
    module = importlib.import_module(f"jaxspec.{package}")
    prefix = f"jaxspec.{package}"
    # A function that is called like its file is shown as part of the file.
    shown = {
        name for name in module.__all__ if {f"{prefix}.{name}", f"{prefix}.{name}.{name}"} & ids
    }
    assert set(module.__all__) - shown == set()


def test_examples_of_docstrings_are_code(site):
    pages = {page: page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html")}
    assert not [page.name for page, text in pages.items() if "<blockquote" in text]
    shown = pages[site / "reference" / "study.html"]
    assert '<span class="gp">&gt;&gt;&gt; </span>' in shown
    assert "doctest: +SKIP" not in shown


def test_every_command_is_in_the_reference(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"usage: jaxspec {name}" not in text]
    assert "--training.steps" in text and "--drafter.remat" in text


def test_home_and_guide_are_the_readme(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    guide = (site / "guide.html").read_text(encoding="utf-8")
    assert "quickstart.sh" in home and 'href="results.html"' in home
    assert "Your own target" in guide and "Three commands to a result" not in guide


def test_links_to_files_of_the_repository_become_names(site):
    text = (site / "how_to_add.html").read_text(encoding="utf-8")
    assert "<code>jaxspec/losses/terms.py</code>" in text
    assert 'href="../jaxspec' not in text
