"""What a drafter drafts on fixed texts, recorded when it is exported.

A change of config.json, of the weights or of the target shows later as other drafts, even where
training, decoding and every server agree on the changed files. `jaxspec parity` makes the
comparison.

Dimension key: N blocks, G drafted slots, V vocabulary, J ranked choices, S tokens, E captured
features.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxspec.checkpoints.conversion import to_host
from jaxspec.checkpoints.shapes import flatten_paths
from jaxspec.config import DrafterConfig
from jaxspec.data.chat_template import Refused
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.models.dflash import DFlash
from jaxspec.models.registry import LanguageModel
from jaxspec.ops.mesh_axes import on_mesh_of
from jaxspec.training.draft_pass import Text, packed, training_pass

KEY = "draft_reference"
"""Where provenance.json of an export holds the record."""
RANKED = 3
"""Choices of each slot that are recorded."""

_QUESTIONS = (
    ("What is 12 + 30?", "12 + 30 is 42, since 12 and 30 have no digits to carry."),
    ("Write a function that adds two numbers.", "def add(a, b):\n    return a + b\n"),
)
_MOST_ANCHORS = 4
_FACTS = (
    "target_layer_ids", "mask_token_id", "block_size", "rope_theta", "rms_norm_eps", "qk_norm",
    "layer_types", "sliding_window", "is_causal",
)  # fmt: skip


def facts(config: DrafterConfig) -> dict[str, Any]:
    """What config.json decides, as JSON has it; layers of one kind are written out."""
    found = {name: getattr(config, name) for name in _FACTS}
    kinds = config.layer_types or ("full_attention",) * config.num_layers
    scaling = config.rope_scaling
    return {
        **found,
        "layer_types": list(kinds),
        "rope_scaling": scaling and dataclasses.asdict(scaling),
        "target_layer_ids": list(config.target_layer_ids),
    }


def reference_record(
    params: Any, frozen: Any, *, target: LanguageModel, drafter: DFlash, tokenizer: Tokenizer
) -> dict[str, Any]:
    """The record of a drafter.

    All processes of a run must call it. Log-probabilities are rounded to 4 decimals.

    Args:
      params: the drafter's, as they are in memory.
      frozen: the target's.
      target: as it was in training.
      drafter: likewise.
      tokenizer: the target's.

    Returns:
      JSON: the facts of the configuration, the size of each parameter and the order of its entries,
      and for each text its ids, the anchors, the size of each captured layer, and the likeliest ids
      of each slot with their log-probabilities. {}: the target has too few positions for any text,
      or its template refuses a conversation of a single question, which is printed.
    """
    config = drafter.config
    try:
        prompts = _prompts(tokenizer)
    except Refused as error:
        if jax.process_index() == 0:
            print(f"The export has no record of drafts (jaxspec parity reads it): {error}")
        return {}
    limit = target.config.max_position_embeddings
    texts = [
        text
        for prompt, (_, answer) in zip(prompts, _QUESTIONS, strict=True)
        if (text := _text(prompt, tokenizer.encode(answer), config.block_size, limit=limit))
    ]
    if not texts:
        return {}
    return {
        "config": facts(config),
        "computed_in": sorted({config.dtype, target.config.dtype}),
        "parameters": sizes(params),
        "orders": orders(params),
        "prompts": [
            {"content": question, "ids": prompt}
            for prompt, (question, _) in zip(prompts, _QUESTIONS, strict=True)
            if tokenizer.has_template
        ],
        "texts": drafts_on(texts, params, frozen, target=target, drafter=drafter),
    }


def drafts_on(
    texts: list[Text], params: Any, frozen: Any, *, target: LanguageModel, drafter: DFlash
) -> list[dict[str, Any]]:
    """For each text: its ids and anchors, the size of each captured layer, and the drafts."""
    row, anchors_1N = packed(texts)
    with on_mesh_of(frozen):
        features_SE, logits_NGV = training_pass(
            params, frozen, row, anchors_1N, target=target, drafter=drafter
        )
    log_p_NGJ, ids_NGJ = map(to_host, _ranked(logits_NGV))
    whole_SE = to_host(features_SE)
    found, position, block = [], 0, 0
    for text in texts:
        own_SE = whole_SE[position : position + len(text.tokens)]
        blocks = slice(block, block + len(text.anchors))
        layers = np.split(own_SE, len(drafter.config.target_layer_ids), axis=1)
        found.append(
            {
                **dataclasses.asdict(text),
                "layers": [_size(layer) for layer in layers],
                "ids": ids_NGJ[blocks].tolist(),
                "log_probabilities": np.round(log_p_NGJ[blocks].astype(float), 4).tolist(),
            }
        )
        position, block = position + len(text.tokens), block + len(text.anchors)
    return found


@jax.jit
def _ranked(logits_NGV: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_p_NGJ, ids_NGJ = jax.lax.top_k(jax.nn.log_softmax(logits_NGV), RANKED)
    return log_p_NGJ, ids_NGJ


def sizes(params: Any) -> dict[str, float]:
    """The root mean square of each parameter, stacked over layers."""
    return {path: _size(to_host(leaf)) for path, leaf in flatten_paths(params).items()}


def orders(params: Any) -> dict[str, float]:
    """A number for each parameter that changes where entries are exchanged.

    It is the product with waves along both axes, of about the size of an entry. The axes before the
    last one, those of stacked layers among them, count as one.
    """
    found = {}
    for path, leaf in flatten_paths(params).items():
        array = to_host(leaf).astype(np.float32)
        rows = array.reshape(-1, array.shape[-1])
        first, second = (np.cos(np.arange(length, dtype=np.float32)) for length in rows.shape)
        found[path] = round(float(first @ (rows @ second)) / math.sqrt(array.size), 6)
    return found


def _size(array: np.ndarray) -> float:
    """Root mean square, to 5 digits."""
    return float(f"{np.sqrt(np.mean(np.square(array.astype(np.float32)))):.5g}")


def _prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """The questions as the target's template puts them; without a template, as they are."""
    if not tokenizer.has_template:
        return [tokenizer.encode(question) for question, _ in _QUESTIONS]
    return [
        tokenizer.encode_prompt([{"role": "user", "content": question}])
        for question, _ in _QUESTIONS
    ]


def _text(prompt: list[int], answer: list[int], block_size: int, *, limit: int) -> Text | None:
    """Prompt and answer, as far as a block behind its last token has a position."""
    tokens = (*prompt, *answer)[: limit - block_size]
    anchors = range(len(prompt), len(tokens), max(1, len(answer) // _MOST_ANCHORS))
    chosen = tuple(anchors)[:_MOST_ANCHORS]
    return Text(tokens, chosen) if chosen else None
