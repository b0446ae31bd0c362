"""What a kind of drafter says about itself, so that nothing else has to know which kinds exist.

Each proposer's file ends with its `DrafterKind`; `jaxspec.drafters.registry` gives them names.

>>> from jaxspec.drafters.ngram import NGramProposer
>>> kind = DrafterKind(
...     proposer=lambda network, target, settings: NGramProposer(settings.block_size),
...     block_size=8,
... )
>>> kind.is_trained
False
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from jaxspec.config import LossConfig
from jaxspec.drafters.denoising import Denoising
from jaxspec.drafters.protocol import Proposer
from jaxspec.models.registry import LanguageModel
from jaxspec.ops.sampling import Sampling


class DraftedTarget(Protocol):
    """What a drafter has to know about the target that it drafts for."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def model(self) -> LanguageModel:
        """The network."""

    @property
    def num_tokens(self) -> int:
        """Ids of its tokenizer; its embedding may have more rows."""

    @property
    def mask_id(self) -> int | None:
        """The mask token of its tokenizer, if there is one."""

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """Ids that are not text: unused ones, and special ones that do not end a response."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftSettings:
    """What an evaluation asks of a drafter."""

    block_size: int
    sampling: Sampling
    denoising: Denoising
    suppressed_ids: tuple[int, ...]
    """Never drafted; the target may emit some of them, as verification is exact for any drafts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """What a drafter's run says about its training."""

    loss: str | None = None
    """What tables call it; None: not recorded."""
    block_size: int = 0
    """K of its training; 0: not recorded, or it was not trained to draft."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterKind:
    """One kind of drafter.

    A kind that is opened from a folder is recognised by the class of the configuration that
    `jaxspec.checkpoints` reads there (`configs`), and has a `network`.
    """

    proposer: Callable[[Any, DraftedTarget, DraftSettings], Proposer] | None
    """(network, target, settings) -> the drafter as decoding sees it; ValueError for settings that
    it cannot follow. None: nothing is drafted."""
    block_size: int
    """K where neither the settings nor the drafter's training name one."""
    gives_rows: bool = True
    """Whether sampled drafts come with their distributions; if not, all are judged as point
    masses."""
    denoises: bool = False
    """Whether a block is filled by denoising, so that the settings of `Denoising` matter and are
    recorded in its results."""
    configs: tuple[type, ...] = ()
    """Classes of configurations, matched exactly; (): this kind is not opened from a folder."""
    network: Callable[[Any, DraftedTarget, str], Any] | None = None
    """(configuration, target, folder for messages) -> the network, with what the configuration
    leaves to the target filled in; ValueError for a drafter of another target."""
    tokenizer: Literal["none", "compared", "counted"] = "none"
    """Whether the folder's tokenizer must be the target's. "none": the drafter reads through the
    target's embedding; "compared": yes; "counted": yes, and without one the embedding has to have
    the target's tokens and a mask."""
    history: Callable[[Any, Mapping[str, Any]], History] = lambda config, run: History()
    """(configuration, the recorded settings of its run or {}) -> what is known of its training."""

    @property
    def is_trained(self) -> bool:
        """Whether it is opened from a folder."""
        return bool(self.configs)

    @property
    def drafts(self) -> bool:
        """False for the target alone."""
        return self.proposer is not None


def never_drafted(
    target: DraftedTarget, settings: DraftSettings, *, mask_id: int | None
) -> tuple[int, ...]:
    """What a drafter with a mask does not draft: the mask too, unless it is a token of the text.

    A GPT-2 has no token to spare: its drafters use the end of text as their mask.
    """
    mask = {mask_id} if mask_id is not None and mask_id in target.reserved_ids else set()
    return tuple(sorted(mask | set(settings.suppressed_ids)))


def recorded_group(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of recorded settings; {} where it is missing."""
    group = run.get(name)
    return group if isinstance(group, Mapping) else {}


def recorded_loss(run: Mapping[str, Any]) -> str | None:
    """The label of the loss that a run records, if it does.

    Fields of another version are passed over.
    """
    known = {field.name for field in dataclasses.fields(LossConfig)}
    recorded = run.get("loss")
    if not isinstance(recorded, Mapping):
        return None
    values = {key: value for key, value in recorded.items() if key in known}
    if isinstance(values.get("decay"), str):
        values["decay"] = math.inf  # JSON has no infinity: it is recorded as a string.
    return LossConfig(**values).label
