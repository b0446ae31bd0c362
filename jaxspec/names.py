"""Names that a user may choose, and the one that was meant.

>>> did_you_mean("tokn", ["greedy", "token", "block"])
" Did you mean 'token'?"
>>> did_you_mean("xyz", ["greedy", "token", "block"])
''
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence that names the closest of `names`, to end a message with; "" if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
