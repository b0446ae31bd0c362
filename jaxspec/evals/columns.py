"""The columns of a report: one entry per figure, for both kinds of evaluation.

An entry names the field of a result row, its titles, its format and its line in the legend. A new
metric is one more entry, with the function that computes it: the figure then appears in the JSON
rows, in the Markdown table with its legend, and on the terminal. Rows of older files lack it, and a
column without any value is left out.

    Column(
        "all_accepted_share",
        title="all accepted",
        spec=".0%",
        legend="all accepted: share of rounds in which every draft was accepted.",
        value=lambda measured: ...,        # of a `MeasuredDrafter`
    )
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from jaxspec.evals.intervals import FEWEST_PROMPTS, bootstrap_ratio, by_conversation
from jaxspec.evals.results import BASELINE
from jaxspec.evals.tau import Rounds

if TYPE_CHECKING:
    from jaxspec.decoding import DiffusionResponse
    from jaxspec.evals.diffusion.timing import DiffusionSpeed
    from jaxspec.evals.speculative.timing import Speed

MeasuredT = TypeVar("MeasuredT")


@dataclasses.dataclass(frozen=True)
class MeasuredDrafter:
    """What was measured of one drafter on one benchmark."""

    rounds: Sequence[Rounds]
    """Of each response."""
    _: dataclasses.KW_ONLY
    num_slots: int
    """Drafted slots of a round."""
    speed: Speed | None
    """None when timing is off."""
    seed: int
    """Of the bootstrap."""


@dataclasses.dataclass(frozen=True)
class MeasuredDecoder:
    """What was measured of one decoder of a diffusion language model on one benchmark."""

    responses: Sequence[DiffusionResponse]
    _: dataclasses.KW_ONLY
    base: Sequence[DiffusionResponse]
    """The base decoder's responses to the same prompts."""
    speed: DiffusionSpeed | None
    """None when timing is off."""
    seed: int
    """Of the bootstrap."""

    def interval(
        self, numerators: Sequence[int], denominators: Sequence[int]
    ) -> list[float] | None:
        """95% interval of the ratio of two sums over the responses; None for too few prompts."""
        names = [response.prompt_id for response in self.responses]
        sums = by_conversation(names, (numerators, denominators))
        return _listed(bootstrap_ratio(*sums, seed=self.seed))


@dataclasses.dataclass(frozen=True)
class Column(Generic[MeasuredT]):
    """One figure (or name, or setting) of a result row, and how it is shown."""

    field: str
    """Its name in the row."""
    _: dataclasses.KW_ONLY
    title: str
    """In Markdown."""
    short: str = ""
    """Title on a terminal, where all columns have to fit into 80 characters; "": the same."""
    spec: str = ""
    """Format of its numbers; "": as text. Two numbers, [low, high], are shown as an interval."""
    unit: str = ""
    """Put after the number."""
    legend: str = ""
    """What it means, as a whole sentence for the legend."""
    interval: str = ""
    """Field with [low, high], which is put after the number; "": none."""
    over: Literal["mean", "sum", "max"] = "mean"
    """How benchmarks are combined."""
    shown: Literal["known", "always", "varies"] = "known"
    """known: if any row has a value. varies: if rows differ in it (a setting)."""
    on_terminal: bool = True
    """False: in Markdown only."""
    value: Callable[[MeasuredT], Any] | None = None
    """Computes it from what was measured. None: the runner puts the field into the row, from
    `tau.summarise`, `diffusion.runner.summarise_passes`, the timing or the settings."""

    @property
    def is_name(self) -> bool:
        """Whether it is text that tells rows apart."""
        return not self.spec and self.shown == "always"

    @property
    def is_figure(self) -> bool:
        """Whether its cells are numbers: aligned to the right, and sorted by their size."""
        return bool(self.spec)


def _listed(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _speedup_interval(measured: MeasuredDrafter | MeasuredDecoder) -> list[float] | None:
    return _listed(measured.speed.speedup_ci95) if measured.speed else None


def _timed_prompts(measured: MeasuredDrafter | MeasuredDecoder) -> int | None:
    return measured.speed.timed_prompts if measured.speed else None


_TIMED_LEGEND = (
    "timed: prompts that were timed, one at a time; the interval of the speed is a bootstrap over "
    f"them and needs at least {FEWEST_PROMPTS}."
)


def computed(columns: Sequence[Column[MeasuredT]], measured: MeasuredT) -> dict[str, Any]:
    """The fields that the table's own entries compute."""
    return {column.field: column.value(measured) for column in columns if column.value is not None}


SPECULATIVE: tuple[Column[MeasuredDrafter], ...] = (
    Column("benchmark", title="benchmark", shown="always"),
    # The loss; with the drafter's name where a loss has several (`results.labels`).
    Column("label", title="loss", shown="always"),
    Column("temperature", title="temperature", spec="g", shown="varies"),
    Column("block_size", title="block size", spec="g", shown="varies"),
    Column("target", title="target", shown="varies"),
    Column("prompts", title="prompts", short="n", spec="d", over="sum", shown="always"),
    Column(
        "tau_micro",
        title="tau (95%)",
        spec=".2f",
        interval="tau_ci95",
        shown="always",
        legend="tau: tokens emitted per draft-verify round, bonus token included, over all rounds, "
        f"with a 95% bootstrap interval over prompts (at least {FEWEST_PROMPTS}). All turns of a "
        "conversation count as one prompt.",
    ),
    Column(
        "tau_macro",
        title="macro",
        spec=".2f",
        shown="always",
        legend="macro: mean of each response's own mean.",
    ),
    Column(
        "accepted_per_round",
        title="accepted",
        short="acc.",
        spec=".2f",
        shown="always",
        legend="accepted: without the bonus.",
    ),
    # Over another row: `results.gains`.
    Column(
        "gain",
        title="gain",
        spec="+.1f",
        unit="%",
        shown="always",
        legend=f"gain: of tau over the {BASELINE} row.",
    ),
    Column(
        "speedup",
        title="speedup",
        short="speed",
        spec=".2f",
        unit="x",
        shown="always",
        legend="speedup: wall clock at batch 1 against the target's own decoding in the same run.",
    ),
    Column(
        "speedup_ci95",
        title="speedup (95%)",
        spec=".2f",
        unit="x",
        on_terminal=False,
        value=_speedup_interval,
    ),
    Column(
        "timed_prompts",
        title="timed",
        spec="d",
        over="sum",
        on_terminal=False,
        legend=_TIMED_LEGEND,
        value=_timed_prompts,
    ),
    Column(
        "mismatched_prompts",
        title="differ",
        spec="d",
        over="sum",
        shown="always",
        legend="differ: prompts whose output is not the target's own.",
    ),
    Column(
        "mismatch_gap",
        title="gap",
        spec=".2g",
        over="max",
        legend="gap: where outputs first differ, how far the emitted token's logit is below the "
        "target's best, at most. About the rounding of a logit (in bfloat16 1/256 of its size, and "
        "a few of these over many layers): a tie. More: a fault.",
    ),
    Column(
        "repetitive_share",
        title="repetitive",
        short="loops",
        spec=".0%",
        legend="repetitive: share of responses that loop, which inflates tau.",
    ),
)
"""Rows of drafters. `report` adds `label` and `gain`, which depend on the other rows."""


DIFFUSION: tuple[Column[MeasuredDecoder], ...] = (
    Column("benchmark", title="benchmark", shown="always"),
    Column(
        "decoder",
        title="decoder",
        shown="always",
        legend="plain: the base decoder; ssd, freedave, star: graphs without calibration; spiffy: "
        "a calibrated one.",
    ),
    Column(
        "drafts_per_pass",
        title="D",
        spec="d",
        shown="always",
        legend="D: drafted states that a pass reads next to the block.",
    ),
    Column("turns", title="n", spec="d", shown="always", legend="n: responses."),
    Column(
        "nfe_per_response",
        title="NFE",
        spec=".1f",
        shown="always",
        legend="NFE: forward passes of the model per response.",
    ),
    Column(
        "tokens_per_pass",
        title="tokens per pass",
        short="per pass",
        spec=".2f",
        shown="always",
        legend="tokens per pass: up to the end of the block with the stop token, filling included.",
    ),
    Column(
        "nfe_reduction",
        title="fewer",
        spec=".2f",
        shown="always",
        legend="fewer: passes of the base decoder (plain) divided by this one's.",
    ),
    Column(
        "accepted_depth",
        title="depth",
        spec=".2f",
        shown="always",
        legend="depth: steps that a pass with drafts saved, on average.",
    ),
    Column(
        "tokens_per_s",
        title="tokens/s",
        short="tok/s",
        spec=".1f",
        shown="always",
        legend="tokens/s, speed: wall clock at batch 1, and relative to the base decoder in the "
        "same run.",
    ),
    Column("speedup", title="speed", spec=".2f", shown="always"),
    Column(
        "speedup_ci95",
        title="speed (95%)",
        spec=".2f",
        on_terminal=False,
        value=_speedup_interval,
    ),
    Column(
        "timed_prompts",
        title="timed",
        spec="d",
        on_terminal=False,
        legend=_TIMED_LEGEND,
        value=_timed_prompts,
    ),
    Column(
        "pass_ratio",
        title="pass costs",
        short="cost",
        spec=".2f",
        shown="always",
        legend="pass costs: time of a pass over the block and D drafts, in passes over the block "
        'alone; drafting pays while that is below "fewer".',
    ),
    Column(
        "identical_share",
        title="identical",
        short="same",
        spec=".0%",
        shown="always",
        legend="identical: responses equal to the base decoder's.",
    ),
    Column(
        "tokens_per_pass_ci95",
        title="tokens per pass (95%)",
        spec=".2f",
        on_terminal=False,
        legend='(95%): bootstrap intervals over prompts, of "tokens per pass" and of "fewer"; they '
        f"need at least {FEWEST_PROMPTS} responses.",
        value=lambda measured: measured.interval(
            [response.filled for response in measured.responses],
            [response.num_passes for response in measured.responses],
        ),
    ),
    Column(
        "nfe_reduction_ci95",
        title="fewer (95%)",
        spec=".2f",
        on_terminal=False,
        value=lambda measured: measured.interval(
            [response.num_passes for response in measured.base],
            [response.num_passes for response in measured.responses],
        ),
    ),
)
"""Rows of the decoders of a diffusion language model."""
