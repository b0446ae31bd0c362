"""Accepted length: one definition, in numpy, for every table and plot of the project.

A *round* is one draft and its verification. It emits the accepted draft tokens and, unless the
response ended inside them, one token of the target: the bonus (the whole draft was accepted) or
the correction (a draft was rejected). With t_pr the tokens emitted by round r of prompt p:

  tau_micro = sum_pr t_pr / sum_p rounds_p         over rounds, the bonus included
  tau_macro = mean_p (sum_r t_pr / rounds_p)       the mean of each response's mean
  accepted_per_round = sum_pr a_pr / rounds        a_pr accepted drafts, without the bonus
  accept_at[g] = P(slot g accepted | the slots before it accepted, slot g looked at)

The first token of a response comes from the prefill and belongs to no round. The 95% interval
of tau_micro resamples prompts, not rounds: rounds of one response depend on each other.
What other projects call accepted length is computed from the same rounds by `definitions`.

>>> summarise([Rounds(emitted=(3, 1)), Rounds(emitted=(2,))], num_slots=4).tau_micro
2.0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jaxspec.evals.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_ratio,
    by_conversation,
    share_interval,
)

REPETITION_NGRAM = 4
REPETITION_SHARE = 0.5

DEFINITIONS = {
    "micro": "jaxspec's tau_micro: sum of e / rounds",
    "micro_without_bonus": "jaxspec's accepted_per_round: sum of a / rounds",
    "macro": "jaxspec's tau_macro, and z-lab's later versions: mean of each response's mean e",
    "macro_without_bonus": "jaxspec's: mean of each response's mean a",
    "z_lab": "z-lab/dflash: mean of each response's mean (v + 1)",
    "vllm": "vLLM's mean acceptance length: 1 + sum of v / rounds that drafted",
    "deepspec": "DeepSpec's accept_len: sum of c / rounds; c = e if a stop token cut it, or v + 1",
    "vllm_draft_acceptance_rate": "vLLM's draft acceptance rate: sum of v / drafted tokens",
}
"""Who uses each of `definitions`, and its formula. Of a round: e tokens and a drafts that are in
the response, v drafts that verification accepted before a stop token or the limit cut it."""


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What the rounds of one response emitted.

    Raises:
      ValueError: counts that no decoding can produce.
    """

    emitted: tuple[int, ...]
    """Tokens that each round added to the response, bonus or correction included."""
    accepted: tuple[int, ...] | None = None
    """Draft tokens among them; None: one less than emitted in every round. Give it when a round can
    end early (a stop token among the drafts leaves emitted == accepted)."""
    tokens: tuple[int, ...] | None = None
    """Ids of the whole response, to tell repetitive ones; None: not looked at."""
    verified: tuple[int, ...] | None = None
    """Drafts that each round's verification accepted before a stop token or the limit cut the
    response; None: as many as `accepted`, which holds unless a round was cut."""
    stopped: bool = False
    """Whether a stop token ended the response; otherwise the limit did."""
    slots: tuple[int, ...] | None = None
    """Slots that each round drafted; None: all slots, in every round."""
    name: str | None = None
    """Of the response, as in "a#2" for the second turn of "a"; None: it is no turn of another's."""

    def __post_init__(self) -> None:
        if any(count < 1 for count in self.emitted):
            raise ValueError(f"A round emits at least one token: got {list(self.emitted)}.")
        for name in ("accepted", "verified", "slots"):
            counts = getattr(self, name)
            if counts is not None and len(counts) != len(self.emitted):
                raise ValueError(
                    f"Expected {name} counts for all {len(self.emitted)} rounds: got {len(counts)}."
                )
        for emitted, accepted, verified in zip(
            self.emitted, self.accepted_counts, self.verified_counts, strict=True
        ):
            if accepted < 0 or emitted - accepted not in (0, 1):
                raise ValueError(
                    "A round emits its accepted drafts and at most one token more: "
                    f"got {emitted} emitted and {accepted} accepted."
                )
            if accepted != min(verified, emitted):
                raise ValueError(
                    "A round's accepted drafts are the verified ones that were emitted: "
                    f"got {emitted} emitted, {accepted} accepted and {verified} verified."
                )
        if self.slots is not None:
            for drafted, verified in zip(self.slots, self.verified_counts, strict=True):
                if verified > drafted:
                    raise ValueError(
                        f"A round cannot accept more than it drafted: got {drafted} slots and "
                        f"{verified} verified."
                    )

    @property
    def accepted_counts(self) -> tuple[int, ...]:
        """Accepted drafts of each round."""
        if self.accepted is not None:
            return self.accepted
        return tuple(count - 1 for count in self.emitted)

    @property
    def verified_counts(self) -> tuple[int, ...]:
        """Drafts of each round that verification accepted, before any cut."""
        return self.accepted_counts if self.verified is None else self.verified

    def slot_counts(self, num_slots: int) -> tuple[int, ...]:
        """Slots that each round drafted, of `num_slots` at most."""
        return (num_slots,) * len(self.emitted) if self.slots is None else self.slots


@dataclasses.dataclass(frozen=True)
class TauSummary:
    """The figures of one drafter on one benchmark, named as in the result file."""

    prompts: int
    tau_micro: float
    tau_macro: float
    tau_ci95: Interval | None
    """None if there are too few responses (`jaxspec.evals.intervals`)."""
    accepted_per_round: float
    accept_at: tuple[float | None, ...]
    """None where no round reached the slot."""
    reached_at: tuple[int, ...]
    """Rounds that looked at each slot: what `accept_at` rests on."""
    accept_at_intervals: tuple[Interval | None, ...]
    """95% interval of each slot of `accept_at`; None if too few responses reached it."""
    rounds: int
    tokens: int
    """Tokens emitted by rounds (without those of the prefill)."""
    repetitive_share: float | None
    """Share of responses that repeat themselves; None when tokens were not given."""
    tau_micro_without_repetitive: float | None
    """tau_micro of the others; None when there are none, or tokens were not given."""
    responses_without_repetitive: int | None
    """Responses with rounds that this rests on; None if tokens were not given."""
    tau_definitions: dict[str, float]
    """What others would report of the same rounds: `definitions`."""

    def as_dict(self) -> dict[str, object]:
        """The figures in the form of a result row."""
        return {key: _listed(value) for key, value in dataclasses.asdict(self).items()}


def summarise(responses: Sequence[Rounds], *, num_slots: int, seed: int = 0) -> TauSummary:
    """All figures of one drafter on one benchmark.

    Args:
      responses: one for each prompt.
      num_slots: drafted slots of a round (block size minus the anchor).
      seed: of the bootstrap.

    Raises:
      ValueError: no response has a round, or a round accepted more than `num_slots`.
    """
    totals, rounds = _totals(responses)
    if rounds.sum() == 0:
        raise ValueError(
            f"tau needs at least one draft-verify round: got {len(responses)} responses without "
            "any. Were all prompts left out, or is max_new_tokens 1?"
        )
    accepted = sum(sum(response.accepted_counts) for response in responses)
    repetitive = [_repetitive(response) for response in responses]
    known = [flag for flag in repetitive if flag is not None]
    share = sum(known) / len(known) if known else None
    fresh_total, fresh_rounds = _totals(
        [response for response, flag in zip(responses, repetitive, strict=True) if flag is False]
    )
    slots = SlotCounts.of(responses, num_slots=num_slots)
    return TauSummary(
        prompts=len(responses),
        tau_micro=float(totals.sum() / rounds.sum()),
        tau_macro=tau_macro(responses),
        tau_ci95=bootstrap_interval(responses, seed=seed),
        accepted_per_round=float(accepted / rounds.sum()),
        accept_at=slots.acceptance,
        reached_at=slots.reached,
        accept_at_intervals=slots.intervals(seed=seed),
        rounds=int(rounds.sum()),
        tokens=int(totals.sum()),
        repetitive_share=share,
        tau_micro_without_repetitive=(
            float(fresh_total.sum() / fresh_rounds.sum()) if fresh_rounds.sum() else None
        ),
        responses_without_repetitive=int((fresh_rounds > 0).sum()) if known else None,
        tau_definitions=definitions(responses, num_slots=num_slots),
    )


def definitions(responses: Sequence[Rounds], *, num_slots: int) -> dict[str, float]:
    """Accepted length of the same rounds as several projects define it: the keys of `DEFINITIONS`.

    All average over draft-verify rounds and count no token of the prefill. They differ in the mean
    (over all rounds, or of each response's mean), in the bonus token, and in what the last round
    of a response counts for when it was cut: its tokens after a stop token or the limit.

    | | mean over | bonus | stop token inside the drafts | limit inside the round |
    | --- | --- | --- | --- | --- |
    | micro, macro | rounds, responses | yes | cut | cut |
    | the same without bonus | rounds, responses | no | cut | cut |
    | z_lab | responses | yes | not cut, bonus counted | not cut |
    | vllm | rounds | yes | not cut, bonus counted | not cut |
    | deepspec | rounds | yes | cut, no bonus | not cut |

    Sources, as read:
      z-lab: z-lab/dflash, `dflash/benchmark.py` (mean over turns of each turn's mean) and
        `dflash_generate` in `dflash/model.py`. The version of DFlash alone appends accepted drafts
        plus 1 in every round and cuts the text afterwards: `z_lab`. The version that also has
        DFlash 2 appends what the round put into the response: `macro`.
      vLLM: vllm-project/vllm, `vllm/v1/spec_decode/metrics.py` (1 + accepted tokens / drafts, and
        accepted / drafted tokens) and `update_from_output` in `vllm/v1/core/sched/scheduler.py`,
        which counts before it looks for stop tokens and the limit. A draft is a request's step that
        had draft tokens. Issue 56101 of that project asks to count cut steps as cut.
      DeepSpec: deepseek-ai/DeepSpec, `deepspec/eval/base_evaluator.py` (`acceptance_length`: the
        sum over all rounds over their number). Drafts after a stop token are not counted, and the
        round has no bonus then; tokens after the limit are counted.

    Not in a trace, and so not reproduced: DeepSpec and that z-lab version run one more round when a
    response fills the limit exactly, DeepSpec would still see a stop token after the limit, and
    that z-lab version runs a round even when the first token is a stop token.

    Args:
      responses: at least one with a round; those without any are left out.
      num_slots: drafted slots of a round (block size minus the anchor); of a tree, its depth.

    Raises:
      ValueError: no response has a round, or a round accepted more than `num_slots`.
    """
    _check_slots(responses, num_slots=num_slots)
    measured = [response for response in responses if response.emitted]
    if not measured:
        raise ValueError("tau needs at least one draft-verify round: got none.")
    emitted = [response.emitted for response in measured]
    accepted = [response.accepted_counts for response in measured]
    verified = [response.verified_counts for response in measured]
    drafts = [response.slot_counts(num_slots) for response in measured]
    drafted, drafting = sum(map(sum, drafts)), sum(slots > 0 for each in drafts for slots in each)
    with_bonus = [tuple(count + 1 for count in counts) for counts in verified]
    deepspec = [
        response.emitted if response.stopped else uncut
        for response, uncut in zip(measured, with_bonus, strict=True)
    ]
    return {
        "micro": _over_rounds(emitted),
        "micro_without_bonus": _over_rounds(accepted),
        "macro": _over_responses(emitted),
        "macro_without_bonus": _over_responses(accepted),
        "z_lab": _over_responses(with_bonus),
        "vllm": (sum(map(sum, verified)) + drafting) / drafting if drafting else 1.0,
        "deepspec": _over_rounds(deepspec),
        "vllm_draft_acceptance_rate": float(sum(map(sum, verified)) / max(1, drafted)),
    }


def tau_micro(responses: Sequence[Rounds]) -> float:
    """Tokens emitted per round, over all rounds."""
    totals, rounds = _totals(responses)
    return float(totals.sum() / rounds.sum())


def tau_macro(responses: Sequence[Rounds]) -> float:
    """Mean over responses of their own tokens per round; responses without rounds have none."""
    totals, rounds = _totals(responses)
    has_rounds = rounds > 0
    return float(np.mean(totals[has_rounds] / rounds[has_rounds]))


def bootstrap_interval(
    responses: Sequence[Rounds],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval | None:
    """Percentile bootstrap interval of tau_micro over the prompts.

    None if too few responses have rounds (`jaxspec.evals.intervals.FEWEST_PROMPTS`).
    """
    totals, rounds = by_conversation(_names(responses), _totals(responses))
    return bootstrap_ratio(
        totals[rounds > 0],
        rounds[rounds > 0],
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )


@dataclasses.dataclass(frozen=True)
class SlotCounts:
    """For each prompt and slot: the rounds that looked at the slot, and those that accepted it.

    The turns of a conversation count as one prompt.

    A round looks at slot g if it drafted it, accepted the g slots before it and did not end there:
    a response that stopped inside an accepted draft says nothing about the next slot.
    """

    looked_at: npt.NDArray[np.int64]
    """[prompts, slots]."""
    accepted_at: npt.NDArray[np.int64]
    """[prompts, slots]."""

    @classmethod
    def of(cls, responses: Sequence[Rounds], *, num_slots: int) -> SlotCounts:
        """Counts the rounds of responses.

        Raises:
          ValueError: a round accepted more than `num_slots`.
        """
        _check_slots(responses, num_slots=num_slots)
        looked_at = np.zeros((len(responses), num_slots), dtype=np.int64)
        accepted_at = np.zeros_like(looked_at)
        for number, response in enumerate(responses):
            for emitted, accepted, drafted in zip(
                response.emitted,
                response.accepted_counts,
                response.slot_counts(num_slots),
                strict=True,
            ):
                accepted_at[number, :accepted] += 1
                looked_at[number, :accepted] += 1
                if accepted < drafted and emitted > accepted:
                    looked_at[number, accepted] += 1
        return cls(*by_conversation(_names(responses), (looked_at, accepted_at)))

    @property
    def reached(self) -> tuple[int, ...]:
        """Rounds that looked at each slot."""
        return tuple(self.looked_at.sum(axis=0).tolist())

    @property
    def acceptance(self) -> tuple[float | None, ...]:
        """Acceptance of each slot among the rounds that looked at it; None if none did."""
        return tuple(
            hits / trials if trials else None
            for hits, trials in zip(
                self.accepted_at.sum(axis=0).tolist(), self.reached, strict=True
            )
        )

    def intervals(self, *, seed: int = 0) -> tuple[Interval | None, ...]:
        """95% interval of each slot's acceptance: `share_interval` over the prompts."""
        return tuple(
            share_interval(hits, trials, seed=seed)
            for hits, trials in zip(self.accepted_at.T, self.looked_at.T, strict=True)
        )


def repeated_share(tokens: Sequence[int], *, ngram: int = REPETITION_NGRAM) -> float:
    """Share of a response's n-grams that it had before; 0 for one shorter than an n-gram."""
    ngrams = [tuple(tokens[start : start + ngram]) for start in range(len(tokens) - ngram + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def is_repetitive(tokens: Sequence[int]) -> bool:
    """Whether the response had at least half of its 4-grams before.

    Loops of a weak target are easily drafted and inflate tau, so it is reported with and without.
    """
    return repeated_share(tokens) >= REPETITION_SHARE


def _listed(value: object) -> object:
    """Tuples as lists, as in JSON."""
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _repetitive(response: Rounds) -> bool | None:
    return None if response.tokens is None else is_repetitive(response.tokens)


def _names(responses: Sequence[Rounds]) -> list[str]:
    """Names that tell responses apart."""
    # A name has no NUL in it.
    return [f"\0{i}" if r.name is None else r.name for i, r in enumerate(responses)]


def _check_slots(responses: Sequence[Rounds], *, num_slots: int) -> None:
    most = max((max(response.verified_counts, default=0) for response in responses), default=0)
    if most > num_slots:
        raise ValueError(
            f"A round of {num_slots} drafted slots cannot accept {most}: "
            "num_slots is the block size minus 1."
        )


def _over_rounds(counts: Sequence[Sequence[int]]) -> float:
    """Mean over all rounds of all responses."""
    return sum(map(sum, counts)) / sum(map(len, counts))


def _over_responses(counts: Sequence[Sequence[int]]) -> float:
    """Mean of each response's own mean."""
    return float(np.mean([sum(rounds) / len(rounds) for rounds in counts]))


def _totals(
    responses: Sequence[Rounds],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tokens and rounds of each response."""
    totals = np.array([sum(response.emitted) for response in responses], dtype=np.int64)
    rounds = np.array([len(response.emitted) for response in responses], dtype=np.int64)
    return totals, rounds
