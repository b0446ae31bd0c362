"""What a pass over several rows costs, in passes over one, and what that says about the machine.

>>> costs(ratio=0.8, rows=8)
'shared'
>>> costs(ratio=7.5, rows=8)
'arithmetic'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

_FREE = 0.25
"""A further row that costs less than this is nearly free."""
_DEAR = 0.5
"""A further row that costs more than this is paid for."""
_ABOUT_ONE = 1.5
"""A pass that costs less than this, in passes over one row, costs about one."""

Costs = Literal["shared", "between", "arithmetic"]


def costs(*, ratio: float, rows: int) -> Costs:
    """What binds a pass over `rows` rows that costs `ratio` passes over one.

    Returns:
      shared: it costs about one. arithmetic: the cost grows about with the rows.
    """
    further = (ratio - 1.0) / max(1, rows - 1)
    if ratio <= _ABOUT_ONE and further <= _FREE:
        return "shared"
    return "arithmetic" if further >= _DEAR else "between"


def explain_costs(
    passes: Sequence[tuple[float, int]], *, platform: str, rows_are: str = "rows"
) -> str:
    """One sentence: what binds passes on this machine, as far as it was measured.

    Args:
      passes: (ratio, rows) of each, at least one.
      platform: of the device: "cpu", "gpu".
      rows_are: what a pass has several of.
    """
    found = {costs(ratio=ratio, rows=rows) for ratio, rows in passes}
    if len(found) > 1:
        return f"What further {rows_are} of a pass cost differs from measurement to measurement."
    if found == {"shared"}:
        return (
            f"The {rows_are} of a pass cost about as much as one: time goes into what they share "
            "(reading weights, starting operations), not into arithmetic."
        )
    if found == {"between"}:
        return (
            f"The {rows_are} of a pass cost more than one, and less than one by one: a part of the "
            "time is shared by them, a part is arithmetic."
        )
    text = f"The cost grows about with the {rows_are}: here a pass is bound by arithmetic."
    if platform == "cpu":
        text += (
            " A large model on an accelerator is bound by reading its weights, which all "
            f"{rows_are} share."
        )
    return text
