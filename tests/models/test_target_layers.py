"""Which layers of a target a drafter reads by default, and how it sees the last one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import DrafterConfig, GPT2Config, LanguageModelConfig, TransformerConfig
from jaxspec.models.dflash import default_layer_ids, resolve_config, served_features
from jaxspec.models.registry import make_model

SHAPE = {"vocab_size": 24, "hidden_size": 16, "num_layers": 3, "num_heads": 2}
TARGETS = (
    TransformerConfig(**SHAPE, num_kv_heads=1, head_dim=8, intermediate_size=24),
    GPT2Config(**SHAPE, intermediate_size=24, max_position_embeddings=32),
)


@pytest.mark.parametrize(
    ("layers", "count", "ids"),
    [
        (36, 5, (1, 9, 17, 25, 33)),
        (32, 5, (1, 8, 15, 22, 29)),
        (36, 1, (18,)),
        (6, 3, (1, 2, 3)),
        (5, 3, (1, 2, 3)),
        (4, 3, (0, 1, 2)),
        (4, 2, (1, 2)),
        (3, 2, (0, 1)),
        (2, 1, (0,)),
    ],
)
def test_default_layers(layers: int, count: int, ids: tuple[int, ...]) -> None:
    assert default_layer_ids(layers, count) == ids


def test_the_last_layer_is_never_a_default() -> None:
    for layers in range(2, 40):
        for count in range(1, layers):
            ids = default_layer_ids(layers, count)
            assert len(set(ids)) == count and list(ids) == sorted(ids)
            assert ids[0] >= 0 and ids[-1] <= layers - 2
        with pytest.raises(ValueError, match=f"from 1 to {layers - 1}, .*got {layers}"):
            default_layer_ids(layers, layers)
    with pytest.raises(ValueError, match=r"has 1 layer, .*set drafter\.target_layer_ids to 0"):
        default_layer_ids(1, 1)


@pytest.mark.parametrize("config", TARGETS, ids=["transformer", "gpt2"])
def test_the_last_layer_is_seen_after_the_final_norm(config: LanguageModelConfig) -> None:
    model = make_model(config)
    tokens_BS = jnp.array([[3, 1, 4, 1, 5]])
    params = jax.jit(model.init)(jax.random.key(0), tokens_BS)["params"]
    scale = jax.random.uniform(jax.random.key(1), (16,))
    params = {**params, "final_norm": {**params["final_norm"], "scale": scale}}

    @jax.jit
    def both(params):
        output = model.apply({"params": params}, tokens_BS, capture=(0, 2))
        seen = served_features(model, params, output.features_BSE, layer_ids=(0, 2))
        return output, seen, served_features(model, params, seen[..., :16], layer_ids=(0,))

    output, seen, first = both(params)
    np.testing.assert_array_equal(seen[..., :16], output.features_BSE[..., :16])
    np.testing.assert_array_equal(first, output.features_BSE[..., :16])
    np.testing.assert_allclose(seen[..., 16:], output.hidden_BSD, rtol=1e-6)
    assert np.abs(seen[..., 16:] - output.features_BSE[..., 16:]).max() > 0.01


def test_the_record_says_how_the_last_layer_was_seen() -> None:
    def resolved(ids: tuple[int, ...]) -> DrafterConfig:
        config = DrafterConfig(block_size=4, target_layer_ids=ids, mask_token_id=3)
        return resolve_config(config, target=TARGETS[0])

    assert resolved((0, 1)).last_state == ""
    assert resolved((0, 2)).last_state == "normed"
    assert resolve_config(resolved((0, 2)), target=TARGETS[0]) == resolved((0, 2))
