"""Ids of the text that a chat template writes, as the tokenizers library gives them for the whole.

The library splits a text at its added tokens and encodes the pieces between them. Here, the pieces
between special tokens are encoded one by one, so that the text of a special token in a message
stays text (`jaxspec.data.guarded_text`).

Tokenizers that write spaces as "▁" may put one before a piece. Llama 2, Mistral and Phi-3 do so
before every piece, others only at the start of the text. No space is added in the middle of a text:
an answer after "[/INST]" begins with one only if the template writes it.

The rule is the one in tokenizer.json, as in transformers 4 and in PreTrainedTokenizerFast. For a
LlamaTokenizer of a Llama model, AutoTokenizer of transformers 5 follows `legacy` and
`add_prefix_space` of tokenizer_config.json instead.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping

import tokenizers

from jaxspec.data.guarded_text import Guard

# Pieces whose ids are kept, and texts whose special tokens are kept: the prompts of a conversation
# repeat them.
_PIECES_KEPT = 2048
_TEXTS_KEPT = 4

_SPACES = re.compile(r"\s*")
_BEFORE = "\U000fff03"
"""Stands for the text that comes before. No vocabulary has it, so nothing merges with it."""


class RenderedText:
    """Encodes guarded text, in which only the template's own special tokens count.

    Args:
      tokenizer: it reads special tokens as plain text.
      special: special tokens by their text.
      guard: hides the text of special tokens in messages.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, special: Mapping[str, int], guard: Guard
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._guard = guard
        self._added = set(tokenizer.get_added_tokens_decoder())
        # White space that a token absorbs is found afterwards: in a pattern, it would be searched
        # again from each of its places.
        self._pattern = _any_of(special)
        tokens = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        self._takes_before = {literal for literal in special if tokens[literal].lstrip}
        self._takes_after = {literal for literal in special if tokens[literal].rstrip}
        self._prepends = prepend_scheme(tokenizer)
        self._find = functools.lru_cache(_TEXTS_KEPT)(self._find_special)
        self._piece = functools.lru_cache(_PIECES_KEPT)(self._encode_piece)

    def encode(self, text: str, *, after: str = "") -> list[int]:
        """Ids of a text, or of the part of it that follows `after`."""
        found = self._find(after)
        tail = after[found[-1][0] :] if found else after
        tail_ids = self._encode(tail)
        if not tail_ids or tail_ids[-1] in self._added:
            # An added token ends a piece, and may absorb the white space that follows it.
            ids = self._encode(tail + text)
            if ids[: len(tail_ids)] == tail_ids:
                return ids[len(tail_ids) :]
        return self._encode(text, goes_on=True)

    def stop_after(self, text: str, stop_ids: Collection[int]) -> int | None:
        """Where the first stop token of a text ends, with the white space it absorbs."""
        return next((stop for _, stop, id_ in self._find(text) if id_ in stop_ids), None)

    def special_text_in(self, text: str) -> str:
        """The first special token that is written in a plain text; "": none."""
        match = self._pattern.search(text)
        return match.group() if match else ""

    def readings(self, text: str) -> list[list[int]]:
        """Ids of plain text at the beginning of a piece, and in the middle of one."""
        return [list(self._piece(text, goes_on)) for goes_on in (False, True)]

    def _encode(self, text: str, *, goes_on: bool = False) -> list[int]:
        ids: list[int] = []
        position = 0
        for start, stop, id_ in self._find(text):
            ids += self._piece(text[position:start], goes_on)
            ids.append(id_)
            position, goes_on = stop, self._prepends == "first"
        ids += self._piece(text[position:], goes_on)
        return ids

    def _encode_piece(self, piece: str, goes_on: bool) -> tuple[int, ...]:
        text = self._guard.show(piece)
        if goes_on and self._prepends != "never":
            before = self._ids(_BEFORE)
            ids = self._ids(_BEFORE + text)
            assert ids[: len(before)] == before
            return ids[len(before) :]
        return self._ids(text)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _find_special(self, text: str) -> list[tuple[int, int, int]]:
        """Start, end and id of each special token in a text."""
        found: list[tuple[int, int, int]] = []
        at = 0
        while match := self._pattern.search(text, at):
            literal = match.group()
            start, end = match.span()
            if literal in self._takes_before:
                start = at + len(text[at:start].rstrip())
            if literal in self._takes_after:
                spaces = _SPACES.match(text, end)
                assert spaces is not None, "it matches nothing, too"
                end = spaces.end()
            found.append((start, end, self._special[literal]))
            at = end
        return found


def prepend_scheme(tokenizer: tokenizers.Tokenizer) -> str:
    """When a space is put before a piece: "always", "never", or "first": at a text's start."""
    rule = tokenizer.pre_tokenizer
    if isinstance(rule, tokenizers.pre_tokenizers.Metaspace):
        return str(rule.prepend_scheme)
    normalizer = tokenizer.normalizer
    prepends = normalizer is not None and normalizer.normalize_str("x") == "▁x"
    return "always" if prepends else "never"


def _any_of(literals: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the longest of several texts that fits; without any, it never matches."""
    longest_first = sorted(literals, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
