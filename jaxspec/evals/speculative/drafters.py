"""Which drafters an evaluation measures: those in the user's folders, and kinds that need none.

>>> drafters = open_drafters(  # doctest: +SKIP
...     ["runs/full"], kinds=["dflash", "ngram"], target=target)
>>> [drafter.name for drafter in drafters]  # doctest: +SKIP
['full', 'ngram']
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxspec.drafters.registry import KINDS
from jaxspec.evals.opening import DrafterBundle, TargetBundle, open_drafter, untrained_drafter
from jaxspec.names import did_you_mean


def open_drafters(
    workdirs: Sequence[str | Path], *, kinds: Sequence[str] = (), target: TargetBundle
) -> list[DrafterBundle]:
    """What is measured, in the order of the kinds.

    Args:
      workdirs: folders of trained drafters.
      kinds: of `jaxspec.drafters.registry.KINDS`; (): every folder.
      target: what they draft for.

    Raises:
      ValueError: nothing to measure, an unknown kind, a kind without a folder, or a folder that
        cannot be opened.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(
            f"Unknown kind of drafter {unknown[0]!r}: there are {', '.join(KINDS)}."
            f"{did_you_mean(unknown[0], KINDS)}"
        )
    if not workdirs and not kinds:
        raise ValueError(
            "No drafters to measure: name at least one folder (--workdir DIR), or a kind that "
            "needs none (--drafters ngram). A diffusion language model, which needs none either, "
            "is named by --target.path."
        )
    trained = [open_drafter(folder, target=target) for folder in workdirs]
    if not kinds:
        return trained
    chosen: list[DrafterBundle] = []
    for kind in dict.fromkeys(kinds):
        if KINDS[kind].is_trained:
            of_kind = [drafter for drafter in trained if drafter.kind == kind]
            if not of_kind:
                raise ValueError(
                    f"--drafters asks for {kind!r}, but no folder in --workdir holds such a "
                    "drafter."
                )
            chosen += of_kind
        else:
            chosen.append(untrained_drafter(kind))
    return chosen
