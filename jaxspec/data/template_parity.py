"""Checks that what is learned is what will be decoded, before a run begins.

For some examples of each source, the ids before each learned answer are compared with those that
`Tokenizer.encode_prompt` gives in evaluation, and the answer's last id with the stop tokens. The
documents may come from a cache or from other code: only the ids count.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxspec.data.examples import Example
from jaxspec.data.packing import Documents

if TYPE_CHECKING:
    from jaxspec.data.tokenizer import Tokenizer

CHECKED = 32
"""Examples of each source that are checked."""
MOST_CHECKED = 512
"""Examples that are checked in all: each file of a data set may be a source of its own."""
_SHOWN = 8
"""Tokens that a message shows on each side of a difference."""


def check_parity(examples: Sequence[Example], documents: Documents, tokenizer: Tokenizer) -> int:
    """Compares learned documents with the prompts of evaluation.

    Args:
      examples: what was tokenized.
      documents: the result, with names.
      tokenizer: the target's.

    Returns:
      How many answers were checked.

    Raises:
      ValueError: a difference; the message names the example, the turn and both texts.
    """
    named = Counter(example.id for example in examples)
    chosen = _spread(examples, named)
    runs: dict[str, list[list[int]]] = {examples[place].id: [] for place, _ in chosen}
    for name, run in itertools.groupby(range(len(documents)), lambda place: documents.names[place]):
        if name in runs:
            runs[name].append([*run])
    checked = 0
    for place, nth in chosen:
        example = examples[place]
        found = runs[example.id]
        if named[example.id] == 1:
            found = [[*itertools.chain.from_iterable(found)]]
        # Of examples with one name, each must have documents, to tell which are whose.
        if len(found) == named[example.id]:
            its = [documents[document] for document in found[nth]]
            checked += _check(example, its, tokenizer)
    return checked


def _spread(examples: Sequence[Example], named: Mapping[str, int]) -> list[tuple[int, int]]:
    """Up to `CHECKED` conversations of each source, evenly over it, and `MOST_CHECKED` in all.

    Args:
      examples: all of them.
      named: how many have each name.

    Returns:
      The place of each, and how many of its name come before it.
    """
    # Their places: the examples themselves may be more than memory holds.
    by_source: dict[str, list[tuple[int, int]]] = {}
    before: Counter[str] = Counter()
    for place, example in enumerate(examples):
        if not example.is_running_text:
            by_source.setdefault(example.source, []).append((place, before[example.id]))
        if named[example.id] > 1:
            before[example.id] += 1
    chosen = [found for places in by_source.values() for found in _evenly(places, CHECKED)]
    return _evenly(chosen, MOST_CHECKED)


def _evenly(places: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Up to so many of them, at even distances."""
    count = min(most, len(places))
    return [places[number * len(places) // count] for number in range(count)]


def _check(
    example: Example,
    found: list[tuple[NDArray[np.int32], NDArray[np.bool_]]],
    tokenizer: Tokenizer,
) -> int:
    turns, tools = example.conversation, example.tool_list
    rows = tokenizer.encode_turns(turns, tools=tools).rows
    if len(found) != len(rows):
        raise ValueError(
            f"Example {example.id!r} was tokenized into {len(found)} documents: expected "
            f"{len(rows)}, as its chat template writes it. {_ADVICE}"
        )
    checked = 0
    for (ids_S, learned_S), row in zip(found, rows, strict=True):
        for answer in row.answers:
            if turns[answer.turn - 1]["role"] == "assistant":
                continue  # Evaluation never asks for a second answer.
            where = f"Example {example.id!r}, turn {answer.turn}"
            prompt = tokenizer.encode_prompt(turns[: answer.turn], tools=tools)
            _compare(ids_S[: answer.start].tolist(), prompt, tokenizer, where=where)
            learned = ids_S[answer.start : answer.stop].tolist()
            if not learned or learned[-1] not in tokenizer.stop_ids:
                end = tokenizer.decode(learned[-_SHOWN:], skip_special=False)
                raise ValueError(
                    f"{where}: the learned answer ends with {end!r}, expected one of the stop "
                    f"tokens at its end. {_ADVICE}"
                )
            # The first token of a document is never learned.
            if not learned_S[max(1, answer.start) : answer.stop].all():
                raise ValueError(f"{where}: the answer is not marked as learned. {_ADVICE}")
            checked += 1
    return checked


def _compare(learned: list[int], prompt: list[int], tokenizer: Tokenizer, *, where: str) -> None:
    if learned == prompt:
        return
    place = next(
        (place for place, (a, b) in enumerate(zip(learned, prompt, strict=False)) if a != b),
        min(len(learned), len(prompt)),
    )
    window = slice(max(0, place - _SHOWN), place + _SHOWN)
    one, other = (tokenizer.decode(ids[window], skip_special=False) for ids in (learned, prompt))
    raise ValueError(
        f"{where}: the text before the learned answer is not the generation prompt. They differ at "
        f"token {place}: learned {one!r}, generation prompt {other!r}. {_ADVICE}"
    )


_ADVICE = (
    "Remove the folder 'tokenized' of data.data_dir, which may hold documents of another chat "
    "template. If this stays, the template gives different texts for one conversation: take the "
    "model's own."
)
