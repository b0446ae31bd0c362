r"""Names that a user may choose: suggestions for misspelt ones, and how each medium shows them.

The name of a folder, a model or a loss may hold any characters. Result files keep it as it is; in
what people read, it is escaped so that it is shown as text.

>>> did_you_mean("tokn", ["greedy", "token", "block"])
" Did you mean 'token'?"
>>> did_you_mean("xyz", ["greedy", "token", "block"])
''
>>> for_terminal("run" + chr(27) + "[31m")
'run\\x1b[31m'
>>> print(for_markdown("a|b"), for_plot("$x$"))
a\|b \$x\$
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 80
"""The most characters of a name that are shown."""
_LONGEST_IN_PLOTS = 48
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence that names the closest of `names`, to end a message with; "" if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def visible(text: str) -> str:
    """Text with its control characters written out, those that change its direction included."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def for_terminal(name: str, *, longest: int = LONGEST) -> str:
    """A name for a terminal: visible, and at most `longest` characters long.

    If rich prints it, pass it as `rich.text.Text`, or turn markup off.
    """
    shown = visible(name)
    if len(shown) <= longest:
        return shown
    half = longest // 2
    return f"{shown[:half]}…{shown[1 - half :]}"


def for_markdown(name: str, *, longest: int = LONGEST) -> str:
    """A name for Markdown text, in a cell of a table or within a line."""
    return _MARKDOWN.sub(r"\\\1", for_terminal(name, longest=longest))


def for_plot(name: str) -> str:
    """A name for matplotlib, which neither reads it as a formula nor leaves it out of a legend."""
    shown = for_terminal(name, longest=_LONGEST_IN_PLOTS).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
