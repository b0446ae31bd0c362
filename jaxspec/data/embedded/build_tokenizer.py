"""Builds the tokenizer that is shipped in the package.

python -m jaxspec.data.embedded.build_tokenizer

The result depends only on the generator, byte for byte; a test builds it again and compares.
"""

from __future__ import annotations

import os

from jaxspec.data.embedded import corpus
from jaxspec.data.tokenizer import EMBEDDED_FOLDER, Tokenizer

VOCAB_SIZE = 1024
EXAMPLES = 9000


def build(folder: str | os.PathLike[str] = EMBEDDED_FOLDER) -> Tokenizer:
    """Train on the first examples of the training mixture, and write the folder."""
    examples = corpus.generate_mixture("train", EXAMPLES)
    # With the role in front, "user" and "assistant" become single tokens in every turn's header.
    texts = (f"{role}\n{content}" for example in examples for role, content in example.turns)
    return Tokenizer.train(texts, vocab_size=VOCAB_SIZE, folder=folder)


if __name__ == "__main__":
    tokenizer = build()
    print(f"{tokenizer.folder}: {tokenizer.vocab_size} tokens")
