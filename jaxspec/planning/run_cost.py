"""Time and cost of a whole run, from the time of a step.

>>> cost = RunCost.of(2.0, steps=1800, chips=8, tokens=4096, price=4.2)
>>> cost.hours, cost.chip_hours, cost.cost, cost.tokens_per_second
(1.0, 8.0, 33.6, 2048.0)
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What a run takes."""

    seconds_per_step: float
    tokens_per_second: float
    """Over all devices."""
    hours: float
    """Of the whole run, without checkpoints and validation."""
    chip_hours: float
    cost: float
    """In the currency of the price; 0 without one."""

    @classmethod
    def of(
        cls, seconds_per_step: float, *, steps: int, chips: int, tokens: int, price: float
    ) -> RunCost:
        """From the time of a step.

        Args:
          seconds_per_step: of one step.
          steps: of the run.
          chips: that it occupies.
          tokens: of a step.
          price: of a chip for an hour.
        """
        hours = steps * seconds_per_step / 3600
        return cls(
            seconds_per_step=seconds_per_step,
            tokens_per_second=tokens / seconds_per_step,
            hours=hours,
            chip_hours=hours * chips,
            cost=hours * chips * price,
        )
