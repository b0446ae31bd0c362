"""Draft logits of the same blocks from the training pass and from the decoding pass.

Decoding starts from a prompt and goes on by rounds, as `jaxspec.decoding.speculative` does: it
drafts at the anchor, lets the target read a whole block, and commits only a part of it. Target and
drafter both work from their caches.

Dimension key: B batch rows (a text each), S tokens of a pass, N blocks, K block slots,
G = K - 1 drafted slots, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.evals.opening import DrafterBundle, TargetBundle
from jaxspec.models.cache import KVCache
from jaxspec.training.draft_pass import Text, packed, training_pass


def place_anchors(
    prompt_length: int, length: int, *, block_size: int, most: int
) -> tuple[int, ...]:
    """Anchors from the first token of an answer on, half a block apart.

    >>> place_anchors(5, 20, block_size=8, most=3)
    (5, 9, 13)
    """
    return tuple(range(prompt_length, length, max(1, block_size // 2)))[:most]


def by_training(
    target: TargetBundle, drafter: DrafterBundle, texts: Sequence[Text]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features [S, E] of each text, and draft logits [N, G, V] of all blocks."""
    row, anchors_1N = packed(texts)
    features_SE, logits_NGV = training_pass(
        drafter.params, target.params, row, anchors_1N, target=target.model, drafter=drafter.model
    )
    ends = np.cumsum([len(text.tokens) for text in texts])
    return np.split(np.asarray(features_SE), ends[:-1]), np.asarray(logits_NGV)


def by_decoding(target: TargetBundle, drafter: DrafterBundle, texts: Sequence[Text]) -> np.ndarray:
    """Draft logits [N, G, V] of all blocks."""
    proposer = DFlashProposer(
        target=target.model, drafter=drafter.model, block_size=drafter.block_size
    )
    params = {"target": target.params, "drafter": drafter.params}
    slots = proposer.block_size
    starts_B = np.array([text.anchors[0] for text in texts], np.int32)
    prompts_BS = _cut(texts, np.zeros_like(starts_B), int(starts_B.max()))
    rounds = max(len(text.anchors) for text in texts)
    capacity = max(len(text.tokens) for text in texts) + 2 * slots
    state, cache = _begin(params, prompts_BS, starts_B, proposer=proposer, capacity=capacity)
    found: list[list[np.ndarray]] = [[] for _ in texts]
    for number in range(rounds):
        places = [text.anchors[min(number, len(text.anchors) - 1)] for text in texts]
        following = [text.anchors[min(number + 1, len(text.anchors) - 1)] for text in texts]
        anchors_B = np.array(places, np.int32)
        count_B = np.array(following, np.int32) - anchors_B
        block_BK = _cut(texts, anchors_B, slots)
        logits_BGV, state, cache = _round(
            params, state, cache, block_BK, count_B, proposer=proposer
        )
        for row, text in enumerate(texts):
            if number < len(text.anchors):
                found[row].append(np.asarray(logits_BGV[row]))
    return np.stack([block for row in found for block in row])


def _cut(texts: Sequence[Text], starts_B: np.ndarray, length: int) -> np.ndarray:
    """`length` tokens of each text from a start on; behind its end, zeros."""
    cut_BS = np.zeros((len(texts), length), np.int32)
    for row, (text, start) in enumerate(zip(texts, starts_B, strict=True)):
        part = text.tokens[start : start + length]
        cut_BS[row, : len(part)] = part
    return cut_BS


@functools.partial(jax.jit, static_argnames=("proposer", "capacity"))
def _begin(
    params: Any,
    prompts_BS: jax.Array,
    lengths_B: jax.Array,
    *,
    proposer: DFlashProposer,
    capacity: int,
) -> tuple[KVCache, KVCache]:
    """The drafter's state and the target's cache, each with the prompts."""
    output = proposer.target.apply(
        {"params": params["target"]}, prompts_BS, capture=proposer.capture
    )
    state = proposer.begin(params, prompts_BS, output.features_BSE, lengths_B, capacity=capacity)
    keys, values = output.keys_LBRSC, output.values_LBRSC
    return state, KVCache.prefilled(keys, values, capacity=capacity, lengths_B=lengths_B)


@functools.partial(jax.jit, static_argnames="proposer")
def _round(
    params: Any,
    state: KVCache,
    cache: KVCache,
    block_BK: jax.Array,
    count_B: jax.Array,
    *,
    proposer: DFlashProposer,
) -> tuple[jax.Array, KVCache, KVCache]:
    """Drafts at slot 0 of the block; then the target reads it all, and `count_B` tokens count."""
    logits_BGV = proposer.marginal_logits(params, state, jnp.asarray(block_BK)[:, 0])
    output = proposer.target.apply(
        {"params": params["target"]}, block_BK, cache=cache, capture=proposer.capture
    )
    state = proposer.commit(params, state, block_BK, output.features_BSE, count_B)
    cache = cache.write(output.keys_LBRSC, output.values_LBRSC)
    return logits_BGV, state, cache.advance(count_B)
