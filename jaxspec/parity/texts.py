"""The texts that parity is checked on: questions, and the target's own answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxspec.decoding import Autoregressive, DecodeRules, generate
from jaxspec.evals.opening import TargetBundle
from jaxspec.interruption import is_outage
from jaxspec.ops.sampling import Sampling
from jaxspec.parity.passes import place_anchors
from jaxspec.training.draft_pass import Text

MOST_ANCHORS = 8
"""Blocks of one text."""


def read_questions(file: Path) -> tuple[str, ...]:
    """The questions of a text file, one per line.

    Raises:
      ValueError: the file cannot be read, or holds none.
      OSError: a disk, network share or bucket does not answer now.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: save it as UTF-8.") from error
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(f"{file} cannot be read: {error.strerror or error}.") from error
    questions = tuple(line.strip() for line in lines if line.strip())
    if not questions:
        raise ValueError(f"{file} is empty: expected one question per line.")
    return questions


def answered(
    target: TargetBundle, questions: Sequence[str], *, new_tokens: int, block_size: int
) -> list[Text]:
    """Each question with the target's greedy answer, and anchors in the answer.

    Raises:
      ValueError: no question is short enough.
    """
    tokenizer = target.tokenizer
    limit = target.config.max_position_embeddings - new_tokens - 2 * block_size
    prompts = [
        tokenizer.encode_prompt([{"role": "user", "content": question}])
        if tokenizer.has_template
        else tokenizer.encode(question)
        for question in questions
    ]
    prompts = [prompt for prompt in prompts if len(prompt) <= limit]
    if not prompts:
        raise ValueError(
            f"No question fits: the target has {target.config.max_position_embeddings} positions, "
            f"of which an answer takes {new_tokens} and blocks {2 * block_size}. Lower "
            "--new-tokens, or ask shorter questions."
        )
    strategy = Autoregressive(target.model, DecodeRules(new_tokens, target.stop_ids), Sampling(0.0))
    names = [f"question {number}" for number in range(1, len(prompts) + 1)]
    responses = generate(strategy, target.params, prompts, ids=names, batch_size=len(prompts))
    texts = []
    for prompt, response in zip(prompts, responses, strict=True):
        tokens = (*prompt, *response.tokens)
        anchors = place_anchors(len(prompt), len(tokens), block_size=block_size, most=MOST_ANCHORS)
        if anchors:
            texts.append(Text(tokens, anchors))
    return texts
