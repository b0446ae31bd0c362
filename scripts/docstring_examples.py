r"""Shows the examples in docstrings as code on the documentation site.

mkdocs.yml names this file as an extension of griffe, which reads the docstrings. Markdown would
take the `>>>` of an example for quotations, and its output for text, links and emphasis.

>>> with_fenced_examples("Adds.\n\n>>> 1 + 1\n2")
'Adds.\n\n```pycon\n>>> 1 + 1\n2\n```'
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1.+)*", re.MULTILINE)
"""From the first prompt to the next blank line."""
_DIRECTIVE = re.compile(r" *# doctest: .*")


class FencedExamples(griffe.Extension):
    """Puts fences around the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object after it was read."""
        if obj.docstring is not None:
            obj.docstring.value = with_fenced_examples(obj.docstring.value)


def with_fenced_examples(docstring: str) -> str:
    """A docstring whose examples are fenced blocks of Markdown."""

    def fenced(example: re.Match[str]) -> str:
        indent = example[1]
        return f"{indent}```pycon\n{_DIRECTIVE.sub('', example[0])}\n{indent}```"

    return _EXAMPLE.sub(fenced, docstring)
