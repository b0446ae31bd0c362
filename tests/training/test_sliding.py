"""Sliding layers in packed rows: a document is read as if it were alone in its row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import MaskedTransformerConfig
from jaxspec.models.dflash import DFlash
from jaxspec.models.registry import make_denoiser
from jaxspec.models.transformer import Transformer
from jaxspec.training.denoiser import DenoiserObjective
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


def second_documents(blocks: int):
    """A packed batch, the second document of each row alone, and blocks in both.

    The anchors are at positions 0, 3 and so on of the documents: within the window and past it.
    """
    batch = tiny.batch()
    cuts = (batch["segments"] == 1).sum(1)
    lengths = (batch["segments"] == 2).sum(1)
    alone = {name: np.zeros_like(batch[name]) for name in ("tokens", "segments", "positions")}
    for row, (cut, count) in enumerate(zip(cuts, lengths, strict=True)):
        for name, array in alone.items():
            array[row, :count] = batch[name][row, cut : cut + count]
    anchors = np.minimum(np.arange(blocks) * 3, lengths[:, None] - 1)
    assert batch["tokens"].shape[1] > cuts.max() + WINDOW["sliding_window"]
    return batch, alone, jnp.asarray(cuts[:, None] + anchors), jnp.asarray(anchors)


def test_a_second_document_is_seen_as_if_it_stood_alone():
    batch, alone, anchors_in_row, anchors = second_documents(6)

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
    packed = hidden(*params, batch, anchors_in_row)
    assert packed.shape[:2] == anchors.shape
    np.testing.assert_allclose(packed, hidden(*params, alone, anchors), atol=1e-5)


@pytest.mark.parametrize("context", ["causal", "bidirectional"])
def test_a_denoiser_sees_a_second_document_as_if_it_stood_alone(context):
    batch, alone, anchors_in_row, anchors = second_documents(4)
    shape = dataclasses.asdict(tiny.ARCHITECTURE) | {"num_layers": 2, "layer_types": MIXED}
    model = make_denoiser(MaskedTransformerConfig(**shape | WINDOW, context=context))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    objective = DenoiserObjective(
        model, tiny.LOSS, "draft", anchors=4, block_size=3, batch_size=len(anchors)
    )
    slots_BNG = jnp.full((*anchors.shape, 2), model.config.mask_id)

    @jax.jit
    def logits(batch, anchors_BN):
        output = objective.read_blocks(params, batch, anchors_BN, slots_BNG)
        return model.apply({"params": params}, output.hidden_BSD, method="logits")

    np.testing.assert_allclose(logits(batch, anchors_in_row), logits(alone, anchors), atol=1e-5)
