"""The draft logits of the training pass at chosen anchors of chosen texts.

The texts are packed into one row, as in training: several documents, positions that begin anew,
blocks at anchors, and keys of the context strictly before each anchor.

Dimension key: S tokens of the row, N blocks, K block slots, G = K - 1 drafted slots, V vocabulary,
E captured features.

>>> text = Text(tokens=(7, 8, 9, 5), anchors=(2, 3))
>>> row, anchors_1N = packed([text, text])
>>> row["positions"].tolist(), anchors_1N.tolist()
([[0, 1, 2, 3, 0, 1, 2, 3]], [[2, 3, 6, 7]])
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxspec.config import LossConfig
from jaxspec.models.dflash import DFlash, served_features
from jaxspec.models.registry import LanguageModel
from jaxspec.training.objectives import Batch, DrafterObjective


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids, and the places where blocks begin."""

    tokens: tuple[int, ...]
    anchors: tuple[int, ...]
    """Rising; each is the place of a token that decoding would already have emitted."""


def packed(texts: Sequence[Text]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One training row that holds the texts, and the anchors' places in it, int32 [1, N]."""
    lengths = [len(text.tokens) for text in texts]
    starts = np.cumsum([0, *lengths[:-1]])
    anchors = [
        start + np.array(text.anchors, int) for start, text in zip(starts, texts, strict=True)
    ]
    batch = {
        "tokens": np.concatenate([text.tokens for text in texts]),
        "segments": np.repeat(np.arange(1, len(texts) + 1), lengths),
        "positions": np.concatenate([np.arange(length) for length in lengths]),
    }
    row = {name: values[None].astype(np.int32) for name, values in batch.items()}
    return row, np.concatenate(anchors)[None].astype(np.int32)


@functools.partial(jax.jit, static_argnames=("target", "drafter"))
def training_pass(
    params: Any,
    frozen: Any,
    batch: Batch,
    anchors_1N: jax.Array,
    *,
    target: LanguageModel,
    drafter: DFlash,
) -> tuple[jax.Array, jax.Array]:
    """What the drafter sees, [S, E], and its float32 draft logits, [N, G, V], of a packed row.

    Args:
      params: the drafter's.
      frozen: the target's.
      batch: see `packed`.
      anchors_1N: likewise.
      target: computes the features, the embeddings and the head.
      drafter: drafts.
    """
    # All blocks at once: chunks would have to divide their number.
    drafter = drafter.clone(config=dataclasses.replace(drafter.config, chunk_blocks=0))
    features_1SE = target.apply(
        {"params": frozen},
        batch["tokens"],
        positions_BS=batch["positions"],
        segments_BS=batch["segments"],
        capture=drafter.config.target_layer_ids,
    ).features_BSE
    features_1SE = served_features(
        target, frozen, features_1SE, layer_ids=drafter.config.target_layer_ids
    )
    objective = DrafterObjective(
        target=target, drafter=drafter, loss=LossConfig(), anchors=anchors_1N.shape[1]
    )
    hidden_1NGD = objective.hidden(params, frozen, batch, anchors_1N, features_1SE)
    logits_1NGV = target.apply({"params": frozen}, hidden_1NGD, method="logits")
    return features_1SE[0], logits_1NGV[0]
