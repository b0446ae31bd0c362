"""What a pass over several rows costs, in passes over one row, and why.

>>> costs(ratio=0.8, rows=8)
'shared'
>>> costs(ratio=7.5, rows=8)
'arithmetic'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

_FREE = 0.25
"""If a further row costs at most this, in passes over one row, it is nearly free."""
_DEAR = 0.5
"""If a further row costs at least this, the cost grows with the rows."""
_ABOUT_ONE = 1.5
"""A pass that costs at most this counts as about one pass over one row."""

Costs = Literal["shared", "between", "arithmetic"]


def costs(*, ratio: float, rows: int) -> Costs:
    """What limits a pass over `rows` rows that costs as much as `ratio` passes over one row.

    Returns:
      "shared": it costs about as much as one row. "arithmetic": the cost grows with the number of
      rows. "between": neither.
    """
    further = (ratio - 1.0) / max(1, rows - 1)
    if ratio <= _ABOUT_ONE and further <= _FREE:
        return "shared"
    return "arithmetic" if further >= _DEAR else "between"


def explain_costs(
    passes: Sequence[tuple[float, int]], *, platform: str, rows_are: str = "rows"
) -> str:
    """A sentence or two: what limits the measured passes on this machine.

    Args:
      passes: (ratio, rows) of each pass; at least one.
      platform: the device's platform: "cpu", "gpu".
      rows_are: what the rows are called in the text.
    """
    found = {costs(ratio=ratio, rows=rows) for ratio, rows in passes}
    if len(found) > 1:
        return f"The cost of additional {rows_are} differs between the measurements."
    if found == {"shared"}:
        return (
            f"All {rows_are} of a pass together cost about as much as one: the time goes into what "
            "they share (reading weights, launching operations), not into arithmetic."
        )
    if found == {"between"}:
        return (
            f"All {rows_are} of a pass together cost more than one, but less than each on its own: "
            "part of the time is shared, part is arithmetic."
        )
    text = f"The cost grows with the number of {rows_are}: here, a pass is bound by arithmetic."
    if platform == "cpu":
        text += (
            " On an accelerator, a large model is bound by reading its weights, which all "
            f"{rows_are} share."
        )
    return text
