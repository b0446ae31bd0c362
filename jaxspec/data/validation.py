"""Which conversations are kept out of training, to measure the loss on them.

The choice depends only on a conversation's prompt and the fraction. So conversations with the same
prompt are never on both sides, the choice does not change when a file grows or is shuffled, and a
larger fraction chooses the same conversations and more.

>>> examples = [Example(str(n), (("user", f"What is {n}?"),), "demo") for n in range(1000)]
>>> sum(is_validation(example, 0.1) for example in examples)
103
"""

from __future__ import annotations

from jaxspec.data.examples import Example
from jaxspec.data.heldout import text_hash


def is_validation(example: Example, fraction: float) -> bool:
    """Whether a conversation is one of the fraction that is for validation.

    The hash of the first user turn decides (`text_hash`: case and white space make no difference);
    of running text, the hash of the first turn.

    Args:
      example: a conversation, or running text.
      fraction: the expected share of prompts, from 0 (none) to 1 (all).

    Raises:
      ValueError: a fraction outside this range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"A validation fraction is from 0 to 1: got {fraction}.")
    return prompt_hash(example) < fraction * 2**64


def prompt_hash(example: Example) -> int:
    """The hash that decides: of the first user turn, or else of the first turn; 64 bits."""
    prompt = next((text for role, text in example.turns if role == "user"), example.turns[0][1])
    return text_hash(prompt)
