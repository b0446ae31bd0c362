"""How far an output that differs is from the target's choice: a tie, or a fault?

Where an output first differs from the target's own, both have the same text before. The target
reads that text once more, in one pass; the gap is its largest logit less that of the emitted token.
In bfloat16, passes of different shapes round differently, so where two tokens are about equally
likely, either may be chosen: the gap is then about as large as the rounding of a logit. A larger
one is a fault.

Dimension key: B batch rows (one), D model width, V vocabulary.

>>> logit_gaps(strategy, params, prompts, responses, reference)  # doctest: +SKIP
[0.0625]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.decoding import Autoregressive, Prompts, Response
from jaxspec.decoding.generate import bucket_length, pad_prompts
from jaxspec.decoding.layout import stack_layers
from jaxspec.decoding.placement import on_mesh_of
from jaxspec.decoding.state import prefill
from jaxspec.ops.precision import exact_program
from jaxspec.ops.suppression import suppress


def logit_gaps(
    strategy: Autoregressive,
    params: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Response],
    reference: Sequence[Response],
) -> list[float]:
    """The gap of each response that differs from the reference, in the order of the prompts.

    Args:
      strategy: the target alone.
      params: the target's.
      prompts: ids.
      responses: to these prompts.
      reference: the target's own responses.
    """
    gaps = []
    for prompt, ours, theirs in zip(prompts, responses, reference, strict=True):
        if ours.tokens == theirs.tokens:
            continue
        place = first_difference(ours.tokens, theirs.tokens)
        text = [*prompt, *ours.tokens[:place]]
        length = min(bucket_length(len(text)), strategy.model.config.max_position_embeddings)
        batch = pad_prompts([text], ids=[""], length=length, rows=1, seed=0)
        with on_mesh_of(params):
            gap = _gap(strategy, params, batch, ours.tokens[place])
        gaps.append(float(gap))
    return gaps


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The first place where two responses of which none begins with the other differ."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next(place for place, (our, their) in pairs if our != their)


@exact_program()
def _gap(
    strategy: Autoregressive, params: Any, prompts: Prompts, token: jax.Array | int
) -> jax.Array:
    """The largest logit after the text, less that of the token."""
    params = stack_layers(params)
    _, hidden_BD, _ = prefill(
        strategy.model, params, prompts, capacity=prompts.tokens_BS.shape[1], capture=()
    )
    logits_BV = strategy.model.apply({"params": params}, hidden_BD, method="logits")
    logits_BV = suppress(logits_BV, strategy.rules.suppressed_ids).astype(jnp.float32)
    return logits_BV[0].max() - logits_BV[0, token]
