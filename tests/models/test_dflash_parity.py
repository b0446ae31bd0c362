"""The drafter against the architecture written out in torch, from an exported folder.

The torch side is tests/third_party/reference_forward.py. It drafts one block at a time and is
handed only the context rows that the block may see.

Dimension key: B batch, S context, N blocks, K slots, D width, E captured features, R key/value
heads, C head width, T cached positions.
"""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints import key_maps
from jaxspec.checkpoints.families import dflash
from jaxspec.checkpoints.huggingface import load_drafter, save_drafter
from jaxspec.checkpoints.shapes import nest_paths
from jaxspec.config import DrafterConfig, TransformerConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.dflash import DFlash

DFLASH_ROWS = dflash.FEATURES + dflash.BLOCK + dflash.QK_NORM + dflash.FINAL_NORM

TOLERANCE = 1e-4
TARGET = TransformerConfig(
    vocab_size=61, hidden_size=32, num_layers=6, num_heads=4, num_kv_heads=2, rope_theta=70.0
)
DRAFTER = DrafterConfig(
    block_size=5,
    mask_token_id=60,
    target_layer_ids=(1, 3, 4),
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    rms_norm_eps=1e-4,
)
BATCH, CONTEXT, BLOCKS = 2, 11, 3
MIXED = ("sliding_attention", "full_attention", "sliding_attention")
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "full_causal": {"is_causal": True},
    # The windows end inside the block, and in the context.
    "sliding": {"layer_types": MIXED, "sliding_window": 3},
    "sliding_wide": {"layer_types": MIXED, "sliding_window": 8},
    "sliding_both_ways": {"layer_types": MIXED, "sliding_window": 3, "is_causal": False},
    "sliding_all_causal": {"layer_types": MIXED, "sliding_window": 6, "is_causal": True},
}


@pytest.fixture(scope="module")
def torch() -> types.ModuleType:
    try:
        import torch
    except ImportError:
        pytest.skip("torch is not installed: no reference to compare with")
    return torch


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter with random weights, exported."""
    generator = np.random.default_rng(0)
    sizes = {"D": 32, "F": 48, "C": 16, "QC": 64, "RC": 32, "E": 96}
    shapes = key_maps.parameter_shapes(DFLASH_ROWS, sizes, num_layers=3)
    leaves = {
        path: (1.0 if path.endswith("scale") else 0.0) + 0.3 * generator.standard_normal(shape)
        for path, shape in shapes.items()
    }
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), nest_paths(leaves))
    folder = tmp_path_factory.mktemp("drafter") / "export"
    config = dataclasses.replace(DRAFTER, **KINDS[request.param])
    save_drafter(folder, config, params, target_config=TARGET)
    return folder


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {
        "features_BSE": generator.standard_normal((BATCH, CONTEXT, 96)).astype(np.float32),
        "embeddings_BNKD": generator.standard_normal((BATCH, BLOCKS, 5, 32)).astype(np.float32),
        # A block sees the positions before its anchor; the first anchor of row 0 sees none.
        "anchors_BN": np.array([[0, 4, 11], [3, 7, 10]]),
    }


@pytest.fixture(scope="module")
def expected_BNKD(
    torch: types.ModuleType, folder: Path, inputs: dict[str, np.ndarray]
) -> np.ndarray:
    from tests.third_party.reference_forward import ReferenceDrafter

    drafter = ReferenceDrafter(folder)
    features_BSE = torch.tensor(inputs["features_BSE"])
    embeddings_BNKD = torch.tensor(inputs["embeddings_BNKD"])
    rows = []
    for b in range(BATCH):
        for n in range(BLOCKS):
            anchor = int(inputs["anchors_BN"][b, n])
            rows.append(drafter(features_BSE[b, :anchor], embeddings_BNKD[b, n]))
    return torch.stack(rows).unflatten(0, (BATCH, BLOCKS)).numpy()


def test_training_pass_equals_torch(
    folder: Path, inputs: dict[str, np.ndarray], expected_BNKD: np.ndarray
) -> None:
    config, params = load_drafter(folder, target_config=TARGET)
    drafter: Any = DFlash(config, TARGET.hidden_size)

    @jax.jit
    def run(
        params: Any, features_BSE: jax.Array, embeddings_BNKD: jax.Array, anchors_BN: jax.Array
    ) -> Any:
        positions_BS = jnp.broadcast_to(jnp.arange(CONTEXT), (BATCH, CONTEXT))
        keys, values = drafter.apply(
            {"params": params}, features_BSE, positions_BS, method="context"
        )
        positions_BNK = anchors_BN[..., None] + jnp.arange(config.block_size)
        mask_BNS = jnp.arange(CONTEXT) < anchors_BN[..., None]
        return drafter.apply(
            {"params": params}, embeddings_BNKD, positions_BNK, keys, values, mask_BNS
        )

    got_BNKD = run(params, inputs["features_BSE"], inputs["embeddings_BNKD"], inputs["anchors_BN"])
    np.testing.assert_allclose(got_BNKD, expected_BNKD, atol=TOLERANCE, rtol=TOLERANCE)


def test_decoding_from_a_cache_equals_torch(
    folder: Path, inputs: dict[str, np.ndarray], expected_BNKD: np.ndarray
) -> None:
    """The context comes in two parts; what lies behind the committed rows is never seen."""
    config, params = load_drafter(folder, target_config=TARGET)
    drafter: Any = DFlash(config, TARGET.hidden_size)
    cache = KVCache.create(
        num_layers=3, num_kv_heads=2, head_dim=16, batch=BATCH, capacity=CONTEXT + 7
    )

    @jax.jit
    def feed(params: Any, cache: KVCache, features_BSE: jax.Array) -> KVCache:
        positions_BS = cache.lengths_B[:, None] + jnp.arange(features_BSE.shape[1])
        return cache.write(
            *drafter.apply({"params": params}, features_BSE, positions_BS, method="context")
        )

    @jax.jit
    def draft(params: Any, cache: KVCache, embeddings_BKD: jax.Array) -> jax.Array:
        positions_BNK = cache.lengths_B[:, None, None] + jnp.arange(config.block_size)
        return drafter.apply(
            {"params": params},
            embeddings_BKD[:, None],
            positions_BNK,
            cache.keys_LBRTC,
            cache.values_LBRTC,
            cache.committed_BT()[:, None],
        )[:, 0]

    features_BSE = inputs["features_BSE"]
    anchors_B = inputs["anchors_BN"][:, 1]  # 4 and 7
    cache = feed(params, cache, features_BSE[:, :4]).advance(jnp.array([2, 4]))
    following = np.stack([features_BSE[0, 2:7], features_BSE[1, 4:9]])
    cache = feed(params, cache, following).advance(jnp.array([2, 3]))
    np.testing.assert_array_equal(cache.lengths_B, anchors_B)
    got_BKD = draft(params, cache, inputs["embeddings_BNKD"][:, 1])
    np.testing.assert_allclose(got_BKD, expected_BNKD[:, 1], atol=TOLERANCE, rtol=TOLERANCE)
