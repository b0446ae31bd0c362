"""The embedded corpus: conversations written by a seeded program, so that a run needs no network.

There are three kinds: worked arithmetic stories ("math"), small Python functions with asserts
("code") and short helpful dialogues ("chat"). The splits share no prompt: the structure of a
conversation and its pair of values (say, name and item) both decide its split (see `split`).

>>> generate("math", split="test", count=1)[0].source
'embedded/math'
"""

from __future__ import annotations

import random

from jaxspec.data.embedded import chat, code, math
from jaxspec.data.embedded.split import SPLITS, Writer
from jaxspec.data.examples import Example

_WRITERS: dict[str, Writer] = {
    "math": math.write,
    "code": code.write,
    "chat": chat.write,
}
KINDS = tuple(_WRITERS)

# This many draws in a row without a new prompt mean that the kind is nearly used up.
_FRUITLESS_DRAWS = 2000


def generate(kind: str, *, split: str, count: int, seed: int = 0) -> list[Example]:
    """The first `count` examples of a kind; a larger count continues the same sequence.

    Args:
      kind: "math", "code" or "chat".
      split: "train" or "test".
      count: how many examples, all with different prompts.
      seed: selects one of many sequences of the same split.

    Returns:
      Examples in a fixed order.

    Raises:
      ValueError: an unknown kind or split, or more examples than there are different prompts.
    """
    if kind not in _WRITERS:
        raise ValueError(f"Unknown kind {kind!r} of embedded text: choose one of {list(KINDS)}.")
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r} of embedded text: choose one of {list(SPLITS)}.")
    if count < 0:
        raise ValueError(f"count must be 0 or more: got {count}.")
    write = _WRITERS[kind]
    # A string seed is hashed with SHA-512: stable across processes and Python versions.
    rng = random.Random(f"{kind}/{split}/{seed}")
    examples: list[Example] = []
    seen: set[str] = set()
    fruitless = 0
    while len(examples) < count:
        turns = write(rng, split)
        if turns is None or turns[0][1] in seen:
            fruitless += 1
            if fruitless >= _FRUITLESS_DRAWS:
                raise ValueError(
                    f"{count} different {kind} examples were requested from the {split} split, but "
                    f"only about {len(examples)} exist: request fewer."
                )
            continue
        fruitless = 0
        seen.add(turns[0][1])
        name = f"embedded-{kind}-{split}-{seed}-{len(examples):06d}"
        examples.append(Example(id=name, turns=turns, source=f"embedded/{kind}"))
    return examples


def generate_mixture(split: str, count: int, seed: int = 0) -> list[Example]:
    """Examples of all kinds in turn: math, code, chat, math, ...

    Raises:
      ValueError: as `generate` does.
    """
    per_kind = [
        generate(kind, split=split, count=len(range(offset, count, len(KINDS))), seed=seed)
        for offset, kind in enumerate(KINDS)
    ]
    return [per_kind[index % len(KINDS)][index // len(KINDS)] for index in range(count)]
