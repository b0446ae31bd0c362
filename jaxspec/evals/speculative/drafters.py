"""Which drafters an evaluation measures: those in the user's folders, and kinds that need none.

>>> drafters = open_drafters(  # doctest: +SKIP
...     ["runs/full"], kinds=["dflash", "ngram"], target=target)
>>> [drafter.name for drafter in drafters]  # doctest: +SKIP
['full', 'ngram']
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxspec.config import GPT2Config
from jaxspec.drafters.registry import KINDS
from jaxspec.evals.folder_names import folder_names
from jaxspec.evals.opening import (
    DrafterBundle,
    TargetBundle,
    open_drafter,
    untrained_drafter,
)
from jaxspec.files import user_path
from jaxspec.names import did_you_mean, for_terminal


def open_drafters(
    workdirs: Sequence[str | Path], *, kinds: Sequence[str] = (), target: TargetBundle
) -> list[DrafterBundle]:
    """What is measured, in the order of the kinds.

    Args:
      workdirs: folders of trained drafters. Where two of them have one name, the names of the
        folders above them are put in front: "lrA/full".
      kinds: of `jaxspec.drafters.registry.KINDS`; (): those of the folders.
      target: what they draft for.

    Raises:
      ValueError: nothing to measure, an unknown kind, a kind without a folder, a folder of another
        kind, one that cannot be opened, or one that is named twice.
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
    folders = [user_path(folder) for folder in workdirs]
    trained = [
        dataclasses.replace(open_drafter(folder, target=target), name=name)
        for folder, name in zip(folders, folder_names(folders), strict=True)
    ]
    if not kinds:
        return trained
    for drafter, folder in zip(trained, folders, strict=True):
        if drafter.kind not in kinds:
            raise ValueError(
                f"--workdir {folder} holds a drafter of kind {drafter.kind!r}, which --drafters "
                f"does not list: add it (--drafters {','.join((drafter.kind, *kinds))}), or leave "
                "the folder out."
            )
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


def other_thinking_mode(
    drafter: DrafterBundle, *, target: TargetBundle, asked: bool | None
) -> str | None:
    """A sentence about a drafter that learned another mode of thinking; None: it did not.

    None, too, where its mode is not recorded, or the target has only one.

    Args:
      drafter: what drafts.
      target: what it drafts for.
      asked: `TargetConfig.enable_thinking` now.
    """
    learned = drafter.recorded_target.get("enable_thinking")
    is_known = "enable_thinking" in drafter.recorded_target
    if not (is_known and target.tokenizer.reads_thinking_mode):
        return None
    # The default of a template that has the choice is to think.
    if (learned is False) == (asked is False):
        return None
    return (
        f"{for_terminal(drafter.name)} learned with target.enable_thinking {learned}, which is "
        f"{asked} now: fewer of its drafts will be accepted. --target.enable_thinking {learned} "
        "asks as it learned."
    )


def check_positions(
    drafters: Sequence[DrafterBundle], *, max_prompt_tokens: int, max_new_tokens: int
) -> None:
    """Refuses drafters that would draft at random where the longest texts end.

    A GPT-2 knows only the positions of its table. Others compute theirs.

    Args:
      drafters: what is measured.
      max_prompt_tokens: the longest prompt.
      max_new_tokens: the longest response.

    Raises:
      ValueError: the first drafter with a table that is too short.
    """
    for drafter in drafters:
        config = getattr(drafter.model, "config", None)
        if not isinstance(config, GPT2Config):
            continue
        positions = config.max_position_embeddings
        room = positions - max_new_tokens
        if max_prompt_tokens <= room:
            continue
        advice = (
            f"Set evaluation.max_prompt_tokens to {room} or less."
            if room > 0
            else f"Lower evaluation.max_new_tokens ({max_new_tokens})."
        )
        raise ValueError(
            f"{drafter.name} has a table of {positions} positions, but prompts may have "
            f"{max_prompt_tokens} tokens and answers {max_new_tokens}: it cannot "
            f"draft beyond its table. {advice}"
        )
