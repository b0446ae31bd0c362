"""Which conversations are kept out of training, to measure the loss on them.

The choice depends only on a conversation's prompt and the fraction. So conversations with the same
prompt are never on both sides, the choice does not change when a file grows or is shuffled, and a
larger fraction chooses the same conversations and more.

>>> examples = [Example(str(n), (("user", f"What is {n}?"),), "demo") for n in range(1000)]
>>> training, validation = split_examples(examples, 0.1)
>>> len(training), len(validation)
(897, 103)
"""

from __future__ import annotations

from collections.abc import Iterable

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
    prompt = next((text for role, text in example.turns if role == "user"), example.turns[0][1])
    return text_hash(prompt) < fraction * 2**64


def split_examples(
    examples: Iterable[Example], fraction: float
) -> tuple[list[Example], list[Example]]:
    """The examples for training and those for validation, each in the given order.

    Raises:
      ValueError: see `is_validation`.
    """
    training: list[Example] = []
    validation: list[Example] = []
    for example in examples:
        (validation if is_validation(example, fraction) else training).append(example)
    return training, validation
