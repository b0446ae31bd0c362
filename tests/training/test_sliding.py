"""Sliding layers in packed rows: a document is read as if it were alone in its row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.models.dflash import DFlash
from jaxspec.models.transformer import Transformer
from tests.training import tiny

WINDOW = {"sliding_window": 4}
MIXED = ("sliding_attention", "full_attention")
TARGET = Transformer(
    dataclasses.replace(tiny.ARCHITECTURE, layer_types=(*MIXED, MIXED[0]), **WINDOW)
)
OBJECTIVE = dataclasses.replace(
    tiny.objective(),
    target=TARGET,
    drafter=DFlash(
        dataclasses.replace(tiny.DRAFTER_CONFIG, layer_types=MIXED, **WINDOW),
        tiny.ARCHITECTURE.hidden_size,
    ),
)


def test_a_second_document_is_seen_as_if_it_stood_alone():
    batch = tiny.batch()
    rows, length = batch["tokens"].shape
    cuts = (batch["segments"] == 1).sum(1)
    lengths = (batch["segments"] == 2).sum(1)
    alone = {name: np.zeros_like(batch[name]) for name in ("tokens", "segments", "positions")}
    for row, (cut, count) in enumerate(zip(cuts, lengths, strict=True)):
        for name, array in alone.items():
            array[row, :count] = batch[name][row, cut : cut + count]
    # Blocks at positions 0, 3 and so on of the second documents: within the window and past it.
    anchors = np.minimum(np.arange(6) * 3, lengths[:, None] - 1)

    @jax.jit
    def hidden(drafter, frozen, batch, anchors_BN):
        features_BSE = TARGET.apply(
            {"params": frozen},
            batch["tokens"],
            positions_BS=batch["positions"],
            segments_BS=batch["segments"],
            capture=tiny.DRAFTER_CONFIG.target_layer_ids,
        ).features_BSE
        return OBJECTIVE.hidden(drafter, frozen, batch, anchors_BN, features_BSE)

    params = tiny.drafter_params(), tiny.target_params()
    packed = hidden(*params, batch, jnp.asarray(cuts[:, None] + anchors))
    assert packed.shape[:2] == (rows, 6)
    assert length > cuts.max() + 4
    np.testing.assert_allclose(packed, hidden(*params, alone, jnp.asarray(anchors)), atol=1e-5)
