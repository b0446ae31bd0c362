"""How well a run uses its devices.

>>> utilisation(needs, seconds=1.5)                                            # doctest: +SKIP
0.41
"""

from __future__ import annotations

import jax

from jaxspec.parallel.chips import chip_of
from jaxspec.training.needs import Needs


def utilisation(needs: Needs, *, seconds: float) -> float | None:
    """The share of the devices' peak speed that a step reaches (MFU).

    What is computed again to save memory counts as well.

    Args:
      needs: of the step.
      seconds: that it takes.

    Returns:
      0 to 1; None where the peak of these devices is not known.
    """
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        return None
    peak = chip.peak_operations / chip.cores
    return needs.operations / (len(devices) * peak * seconds)
