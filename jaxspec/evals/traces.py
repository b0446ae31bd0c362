"""One answer, round by round, in the form in which a result file keeps it.

    {"prompt_id": "math-17", "prompt": "<|user|>...", "prompt_tokens": 41, "first": "That",
     "stopped": true, "rounds": [
       {"drafted": 7, "accepted": [" is", " 4"], "bonus": ["."], "rejected": [" +", " 3"]}]}

Texts are those of single tokens; "" stands for a token that does not complete a character. They
add up to the answer. `rejected` holds the drafts that a round rejected, in order: the first of them
was judged, and the others were built on it. A tree's are not in order, and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxspec.data.text_stream import UNFINISHED, TextStream
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding.stream import Round


def trace_of(
    rounds: Sequence[Round],
    *,
    prompt_id: str,
    prompt: Sequence[int],
    tokenizer: Tokenizer,
    is_chain: bool,
) -> dict[str, Any]:
    """The record of one answer.

    Args:
      rounds: as `jaxspec.decoding.stream.stream` gives them, the prefill first.
      prompt_id: its name.
      prompt: its ids.
      tokenizer: of the target.
      is_chain: whether a round's drafts follow one another; otherwise they are a tree.
    """
    text = TextStream(tokenizer)

    def pieces(ids: Sequence[int]) -> list[str]:
        return [text.add([token]) or _special(token, tokenizer) for token in ids]

    first, *others = rounds
    first_piece = "".join(pieces(first.emitted))
    records = []
    for each in others:
        accepted = pieces(each.accepted)
        # Without a bonus token the answer ended inside the draft: nothing was rejected.
        is_judged = is_chain and each.bonus
        rejected = _previewed(each.rejected, text, tokenizer) if is_judged else []
        records.append(
            {
                "drafted": len(each.drafted),
                "accepted": accepted,
                "bonus": pieces(each.bonus),
                "rejected": rejected,
            }
        )
    last = rounds[-1].emitted[-1]
    return {
        "prompt_id": prompt_id,
        "prompt": tokenizer.decode(prompt, skip_special=False),
        "prompt_tokens": len(prompt),
        "first": first_piece,
        "stopped": last in tokenizer.stop_ids,
        "rounds": records,
    }


def _previewed(ids: Sequence[int], text: TextStream, tokenizer: Tokenizer) -> list[str]:
    """Texts of drafts, as they would have continued the answer."""
    found, before = [], ""
    for number, token in enumerate(ids, 1):
        whole = text.preview(ids[:number]).rstrip(UNFINISHED)
        found.append(whole[len(before) :] or _special(token, tokenizer))
        before = whole
    return found


def _special(token: int, tokenizer: Tokenizer) -> str:
    """The text of a special token, which answers are shown without; "" for any other token."""
    if tokenizer.decode([token]):
        return ""
    return tokenizer.decode([token], skip_special=False)
