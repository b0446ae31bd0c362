"""Accepted length by the length of the text: of the prompt, and of all that a round has read.

A result row holds both. `by_prompt` has a record for each response:

    {"prompt_id": "math-17", "prompt_tokens": 41, "tokens": 77, "rounds": 40}

`by_context` sums up the rounds that began at a similar length, prompt included:

    {"tokens_from": 64, "tokens_below": 96, "responses": 31, "rounds": 402, "tokens": 790,
     "tau_ci95": [1.87, 2.06]}

>>> bounds_of(70)
(64, 96)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxspec.evals.intervals import bootstrap_ratio, by_conversation

if TYPE_CHECKING:
    from jaxspec.decoding import Response


def bounds_of(length: int) -> tuple[int, int]:
    """The bin of a length. A bin begins at each power of two, and halfway between two of them.

    >>> [bounds_of(length) for length in (1, 16, 24, 1000)]
    [(0, 16), (16, 24), (24, 32), (768, 1024)]
    """
    if length < 16:
        return 0, 16
    power = 1 << (length.bit_length() - 1)
    half = power + power // 2
    return (power, half) if length < half else (half, 2 * power)


def by_prompt(
    prompts: Sequence[Sequence[int]], responses: Sequence[Response]
) -> list[dict[str, Any]]:
    """The tokens and rounds of each response; the prefill's token is in no round.

    Args:
      prompts: token ids.
      responses: one for each prompt.
    """
    return [
        {
            "prompt_id": response.prompt_id,
            "prompt_tokens": len(prompt),
            "tokens": sum(response.emitted),
            "rounds": len(response.emitted),
        }
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def by_context(
    prompts: Sequence[Sequence[int]], responses: Sequence[Response], *, seed: int
) -> list[dict[str, Any]]:
    """Rounds by the tokens that were there when they began, in bins (`bounds_of`).

    Args:
      prompts: token ids.
      responses: one for each prompt.
      seed: of the bootstrap over prompts.
    """
    measured: list[tuple[str, int, int, int]] = []
    for prompt, response in zip(prompts, responses, strict=True):
        # The first token of a response comes from the prefill.
        starts = itertools.accumulate(response.emitted, initial=len(prompt) + 1)
        measured += [
            (response.prompt_id, start, tokens, 1)
            for start, tokens in zip(starts, response.emitted, strict=False)
        ]
    return _binned(measured, seed=seed)


def by_prompt_length(records: Iterable[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """The records of `by_prompt` in bins of the prompt's length, in the form of `by_context`."""
    return _binned(
        [
            (record["prompt_id"], record["prompt_tokens"], record["tokens"], record["rounds"])
            for record in records
        ],
        seed=seed,
    )


def _binned(measured: Iterable[tuple[str, int, int, int]], *, seed: int) -> list[dict[str, Any]]:
    """Sums of (response, length, tokens, rounds) in bins; bins without rounds are left out."""
    sums: dict[tuple[int, int], dict[str, list[int]]] = {}
    for response, length, tokens, rounds in measured:
        if rounds:
            found = sums.setdefault(bounds_of(length), {}).setdefault(response, [0, 0])
            found[0] += tokens
            found[1] += rounds
    records = []
    for (low, high), by_response in sorted(sums.items()):
        tokens_of, rounds_of = zip(*by_response.values(), strict=True)
        interval = bootstrap_ratio(
            *by_conversation(list(by_response), (tokens_of, rounds_of)), seed=seed
        )
        records.append(
            {
                "tokens_from": low,
                "tokens_below": high,
                "responses": len(by_response),
                "rounds": sum(rounds_of),
                "tokens": sum(tokens_of),
                "tau_ci95": None if interval is None else list(interval),
            }
        )
    return records
