"""Rows of a result file: their fields, their order, their names, and the gain of one over another.

A row is a dict. It has the fields of `FIELDS` (one drafter, measured on one benchmark) or those of
`DIFFUSION_FIELDS` (one decoder of a diffusion language model). More fields may be added freely.
Nothing here knows about models.

>>> gains([{**row, "loss": "uniform"}, row])                                   # doctest: +SKIP
[None, 27.3]
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxspec.evals.record_checks import is_interval, problems_of
from jaxspec.names import for_terminal

Row = Mapping[str, Any]

BASELINE = "uniform"
"""The loss that gains are counted against."""
FULL = "full"
"""The loss with all interventions."""
OTHER_TARGET = "(other target)"
"""Is added to the loss of drafters that were trained on other weights than the target's."""
WEIGHTS, PROMPTS = "target_weights", "prompt_digests"
"""Fields of a provenance: the fingerprint of the target's weights, and a digest of each benchmark's
prompts. Older files lack them."""
LADDER = (
    BASELINE,
    "decay",
    "focal",
    "chain",
    "decay+focal",
    "decay+chain",
    "focal+chain",
)
"""Order of the losses; other names follow in alphabetical order, and FULL comes last."""

_NUMBER = (int, float)
_NUMBER_OR_NONE = (int, float, type(None))
_LIST = (list, tuple)
_LIST_OR_NONE = (list, tuple, type(None))
_COUNT_OR_NONE = (int, type(None))

FIELDS: dict[str, tuple[type, ...]] = {
    "target": (str,),
    "drafter": (str,),
    "loss": (str,),
    "benchmark": (str,),
    "prompts": (int,),
    "temperature": _NUMBER,
    "block_size": (int,),
    "verifier": (str,),
    "tau_micro": _NUMBER,
    "tau_macro": _NUMBER,
    "tau_ci95": _LIST_OR_NONE,
    "accepted_per_round": _NUMBER,
    "accept_at": _LIST,
    "rounds": (int,),
    "tokens": (int,),
    "tokens_per_s": _NUMBER_OR_NONE,
    "baseline_tokens_per_s": _NUMBER_OR_NONE,
    "speedup": _NUMBER_OR_NONE,
    "compile_s": _NUMBER_OR_NONE,
    "mismatched_prompts": (int, type(None)),
}
"""Fields of a drafter's row. None means not measured: speed when timing is off, mismatches
where sampling makes the comparison meaningless, a slot of `accept_at` that no round reached, the
interval of tau for too few responses."""

DIFFUSION_FIELDS: dict[str, tuple[type, ...]] = {
    "target": (str,),
    "decoder": (str,),
    "benchmark": (str,),
    "prompts": (int,),
    "turns": (int,),
    "skipped_prompts": (int,),
    "temperature": _NUMBER,
    "response_length": (int,),
    "block_length": (int,),
    "unmasking": (str,),
    "caching": (str,),
    "block_causal": (bool,),
    "guidance": _NUMBER,
    "layout": (str, type(None)),
    "graph_size": (int,),
    "drafts_per_pass": (int,),
    "nfe": (int,),
    "nfe_per_response": _NUMBER,
    "tokens": (int,),
    "filled_tokens": (int,),
    "tokens_per_pass": _NUMBER,
    "base_nfe": (int,),
    "nfe_reduction": _NUMBER,
    "nfe_by_block": _LIST,
    "steps_by_block": _LIST,
    "accepted_depth": _NUMBER_OR_NONE,
    "accepted_depth_by_block": _LIST,
    "identical": (int,),
    "identical_share": _NUMBER,
    "tokens_per_s": _NUMBER_OR_NONE,
    "baseline_tokens_per_s": _NUMBER_OR_NONE,
    "speedup": _NUMBER_OR_NONE,
    "compile_s": _NUMBER_OR_NONE,
    "block_pass_ms": _NUMBER_OR_NONE,
    "drafted_pass_ms": _NUMBER_OR_NONE,
    "pass_ratio": _NUMBER_OR_NONE,
    "below_break_even": (bool, type(None)),
}
"""Fields of a row of a diffusion language model's decoder. None means not measured:
speed when timing is off, the ratio of passes where nothing is drafted, a depth where no pass had
drafts."""

OPTIONAL_FIELDS: dict[str, tuple[type, ...]] = {
    "tau_definitions": (dict,),
    "reached_at": _LIST,
    "accept_at_intervals": _LIST,
    "responses_without_repetitive": _COUNT_OR_NONE,
    "speedup_ci95": _LIST_OR_NONE,
    "timed_prompts": _COUNT_OR_NONE,
    "looped_round_ms": _NUMBER_OR_NONE,
    "rest_ms": _NUMBER_OR_NONE,
    "nfe_reduction_ci95": _LIST_OR_NONE,
    "tokens_per_pass_ci95": _LIST_OR_NONE,
    "reached_by_block": _LIST,
    "trained_on_other_target": (bool, type(None)),
    "drafter_weights": (str, type(None)),
    "suppress": (str,),
    "mismatched_ids": _LIST,
    "mismatch_gaps": _LIST,
    "mismatch_gap": _NUMBER_OR_NONE,
    "end_of_text": (str,),
    "choice": (dict,),
    "turns": (int,),
    "seed": _COUNT_OR_NONE,
    "decoding": (str,),
    "repetitive_share": _NUMBER_OR_NONE,
    "by_prompt": _LIST,
    "by_context": _LIST,
    "trace": (dict,),
    **dict.fromkeys(("round_ms", "draft_ms", "verify_ms"), _NUMBER_OR_NONE),
    "autoregressive_step_ms": _NUMBER_OR_NONE,
}
"""Fields that older files lack. `tau_definitions`: accepted length by name, see
`jaxspec.evals.tau.DEFINITIONS`. `reached_at`, `accept_at_intervals`: for each slot of `accept_at`,
the rounds that it rests on and its 95% interval. `reached_by_block`: responses that reached each
block of `nfe_by_block`. `looped_round_ms`: time of a round that was timed next to its parts;
`rest_ms`: what these leave over, None unless it exceeds the noise. `trained_on_other_target`:
whether the drafter's run recorded other weights than the target's; None if it recorded none.
`drafter_weights`: fingerprint of the drafter's folder; None if it has none. `mismatched_ids`: the
outputs that differ; `mismatch_gaps`: for each of them, how far the emitted token's logit is below
the target's best where it first differs; `mismatch_gap`: the largest of these. `suppress`: which
tokens the target could not emit ("special" in older files). `end_of_text`: when a diffusion
language model could end its answer. `choice`: what evaluation.strategy "auto" measured and chose.
`by_prompt`, `by_context`: tokens and rounds of each response, and of rounds that began at a similar
length (`jaxspec.evals.lengths`). `trace`: an answer round by round (`jaxspec.evals.traces`).
`decoding`: in a study, the name of the setting. An interval (`*_ci95`) is None if too few prompts
were measured."""

_NAMED_PROBLEMS = 40
_LISTS_ALIKE = {
    "reached_at": "accept_at",
    "accept_at_intervals": "accept_at",
    "reached_by_block": "nfe_by_block",
    "accepted_depth_by_block": "nfe_by_block",
}
"""List -> the list that must have the same length."""


def is_diffusion(row: Row) -> bool:
    """Whether a row is of a diffusion language model's decoder; otherwise it is of a drafter."""
    return "decoder" in row


def is_target_alone(row: Row) -> bool:
    """Whether a drafter's row is that of the target without drafts: compared with itself."""
    return row.get("verifier") == "none"


def is_untrained(row: Row) -> bool:
    """Whether a drafter's row is of a kind that needs no training: its loss is the kind's name.

    In a study, such a row has the name of its loss there, and the seed of its unit.
    """
    return row.get("kind") is not None and row.get("trained_loss", row["loss"]) == row["kind"]


def check_results(
    results: Sequence[Row], *, refusal: str = "These results cannot be written"
) -> None:
    """Refuses rows of a wrong or unreadable file.

    Args:
      results: the rows.
      refusal: how the message begins.

    Raises:
      ValueError: lists missing fields, wrong types and non-finite numbers at once; also rows of
        both kinds of evaluation in one file.
    """
    problems = [problem for index, row in enumerate(results) for problem in _problems(index, row)]
    if len({is_diffusion(row) for row in results if isinstance(row, Mapping)}) > 1:
        problems.append("rows of drafters and of diffusion decoders: expected one kind in a file")
    if problems:
        more = len(problems) - _NAMED_PROBLEMS
        named = problems[:_NAMED_PROBLEMS] + ([f"and {more:,} more"] if more > 0 else [])
        raise ValueError(f"{refusal}:\n- " + "\n- ".join(named))


def _problems(index: int, row: Any) -> list[str]:
    """What is wrong with one row."""
    if not isinstance(row, Mapping):
        return [f"results[{index}] must be an object: got {type(row).__name__}"]
    who = row.get("decoder", row.get("loss", "?"))
    names = f"{for_terminal(str(who))}, {for_terminal(str(row.get('benchmark', '?')))}"
    name = f"results[{index}] ({names})"
    problems: list[str] = []
    fields = DIFFUSION_FIELDS if is_diffusion(row) else FIELDS
    known_optional = {key: types for key, types in OPTIONAL_FIELDS.items() if key in row}
    for field, types in {**fields, **known_optional}.items():
        if field not in row:
            problems.append(f"{name}: {field} is missing")
            continue
        # bool is a kind of int for Python, and not here.
        is_stray_bool = isinstance(row[field], bool) and bool not in types
        if is_stray_bool or not isinstance(row[field], types):
            expected = " or ".join(kind.__name__ for kind in types)
            got = type(row[field]).__name__
            problems.append(f"{name}: {field} must be {expected}: got {got}")
    problems += [f"{name}: {problem}" for problem in _figure_problems(row)]
    taus = row.get("tau_definitions")
    for key, value in taus.items() if isinstance(taus, dict) else ():
        if not isinstance(value, _NUMBER) or isinstance(value, bool):
            got = type(value).__name__
            problems.append(f"{name}: tau_definitions.{key} must be a number: got {got}")
    return problems + [f"{name}: {place} is {value}" for place, value in non_finite_numbers(row)]


def _figure_problems(row: Row) -> list[str]:
    """What is wrong with intervals and with the counts that figures rest on."""
    problems = []
    intervals = {key: value for key, value in row.items() if key.endswith("_ci95")}
    of_slots = row.get("accept_at_intervals")
    for number, interval in enumerate(of_slots if isinstance(of_slots, _LIST) else ()):
        intervals[f"accept_at_intervals[{number}]"] = interval
    for field, interval in intervals.items():
        if interval is not None and not is_interval(interval):
            problems.append(f"{field} must be [low, high]: got {interval!r}")
    problems += problems_of(row)
    for field in ("responses_without_repetitive", "timed_prompts", "looped_round_ms", "rest_ms"):
        amount = row.get(field)
        if isinstance(amount, _NUMBER) and amount < 0:
            problems.append(f"{field} must be 0 or more: got {amount}")
    for field, other in _LISTS_ALIKE.items():
        sizes = [len(row[name]) for name in (field, other) if isinstance(row.get(name), _LIST)]
        if len(set(sizes)) > 1:
            problems.append(
                f"{field} must have as many values as {other}: got {sizes[0]} and {sizes[1]}"
            )
    return problems


def non_finite_numbers(value: Any, *, place: str = "") -> list[tuple[str, float]]:
    """Every nan and infinity in a nested value, and where it is."""
    if isinstance(value, float):
        return [] if math.isfinite(value) else [(place, value)]
    if isinstance(value, Mapping):
        items = [(f"{place}.{key}" if place else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    else:
        return []
    return [found for name, item in items for found in non_finite_numbers(item, place=name)]


def ordered(results: Iterable[Row]) -> list[Row]:
    """Rows by benchmark in order of first appearance, and within one by the ladder of losses."""
    rows = list(results)
    rank = {name: index for index, name in reversed([*enumerate(row["benchmark"] for row in rows)])}

    def place(row: Row) -> tuple[Any, ...]:
        return rank[row["benchmark"]], _loss_rank(own_loss(row)), row["loss"]

    return sorted(rows, key=place)


def labels(rows: Sequence[Row]) -> list[str]:
    """Name of each row within its benchmark: its loss, and its drafter where a loss has several."""
    measured = [(row["loss"], *_setting(row)) for row in rows]
    ambiguous = len(set(measured)) < len(
        {(key, row["drafter"]) for key, row in zip(measured, rows, strict=True)}
    )
    return [f"{row['loss']} ({row['drafter']})" if ambiguous else row["loss"] for row in rows]


def gains(results: Sequence[Row]) -> list[float | None]:
    """Gain of each row's tau_micro over the baseline's, in percent; None without a baseline.

    The baseline is the uniform row of the same target, benchmark, temperature, block size,
    verifier, kind of drafter and, where rows have a field `seed`, seed; several are averaged.
    Drafters of other weights are compared with each other.
    """
    baselines: dict[tuple[Any, ...], list[float]] = {}
    for row in results:
        if own_loss(row) == BASELINE:
            baselines.setdefault(_compared_with(row), []).append(row["tau_micro"])
    found: list[float | None] = []
    for row in results:
        taus = baselines.get(_compared_with(row))
        if taus is None or own_loss(row) == BASELINE:
            found.append(None)
        else:
            found.append(100.0 * (row["tau_micro"] * len(taus) / math.fsum(taus) - 1.0))
    return found


def reached_rounds(row: Row) -> list[int]:
    """Rounds that looked at each slot of `accept_at`.

    Older rows have no `reached_at`. There it is estimated: a slot is looked at by the rounds that
    accepted the previous one (fewer if responses ended there).
    """
    if row.get("reached_at") is not None:
        return list(row["reached_at"])
    before = [1.0, *(share or 0.0 for share in row["accept_at"][:-1])]
    shares = itertools.accumulate(before[: len(row["accept_at"])], operator.mul)
    return [round(row["rounds"] * share) for share in shares]


def varies(rows: Sequence[Row], field: str) -> bool:
    """Whether rows differ in a field."""
    return len({row[field] for row in rows}) > 1


def _setting(row: Row) -> tuple[Any, ...]:
    """What must be equal for two losses to be compared."""
    return tuple(
        row[name] for name in ("target", "benchmark", "temperature", "block_size", "verifier")
    )


def _compared_with(row: Row) -> tuple[Any, ...]:
    """What a row shares with the baseline of its gain."""
    kind, seed = row.get("kind"), row.get("seed")
    return (*_setting(row), kind, seed, bool(row.get("trained_on_other_target")))


def own_loss(row: Row) -> str:
    """The loss of a drafter's row without the mark `OTHER_TARGET`."""
    loss: str = row["loss"]
    return loss.removesuffix(f" {OTHER_TARGET}")


def _loss_rank(loss: str) -> tuple[int, str]:
    if loss in LADDER:
        return LADDER.index(loss), loss
    return len(LADDER) + (loss == FULL), loss
