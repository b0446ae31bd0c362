"""Windows by position: trees of drafts and packed documents see what a plain sequence sees.

That the window is the one of transformers is tested in test_parity.py.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.transformer import Transformer

FULL = TransformerConfig(
    vocab_size=40, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
)
WINDOW = 4
CONFIG = dataclasses.replace(
    FULL,
    layer_types=("sliding_attention", "full_attention", "sliding_attention"),
    sliding_window=WINDOW,
)
TOKENS_BS = np.random.default_rng(0).integers(0, 40, (2, 16)).astype(np.int32)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(Transformer(FULL).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))[
        "params"
    ]


@functools.partial(jax.jit, static_argnames="config")
def forward(params: Any, tokens_BS: Any, *, config: TransformerConfig, **inputs: Any):
    return Transformer(config).apply({"params": params}, tokens_BS, **inputs)


def hidden(params: Any, tokens_BS: np.ndarray, config: TransformerConfig = CONFIG, **inputs: Any):
    return forward(params, tokens_BS, config=config, **inputs).hidden_BSD


def test_a_window_as_long_as_the_text_changes_nothing(params: Any) -> None:
    full_BSD = hidden(params, TOKENS_BS, FULL)
    for window, same in ((16, True), (15, False)):
        wide = dataclasses.replace(CONFIG, sliding_window=window)
        got_BSD = hidden(params, TOKENS_BS, wide)
        np.testing.assert_allclose(got_BSD[:, :15], full_BSD[:, :15], atol=1e-6)
        assert (np.abs(got_BSD[:, 15] - full_BSD[:, 15]).max() < 1e-6) == same


@pytest.mark.parametrize("unroll_layers", [False, True])
def test_a_stack_of_sliding_layers_forgets(params: Any, unroll_layers: bool) -> None:
    """Three layers see 3 x (window - 1) positions back, and not one more."""
    config = dataclasses.replace(
        CONFIG, layer_types=("sliding_attention",) * 3, unroll_layers=unroll_layers
    )
    reach = 3 * (WINDOW - 1)
    changed_BS = TOKENS_BS.copy()
    changed_BS[:, 0] = (changed_BS[:, 0] + 1) % 40
    moved_BS = np.abs(hidden(params, TOKENS_BS, config) - hidden(params, changed_BS, config)).max(
        -1
    )
    assert (moved_BS[:, : reach + 1] > 0).all()
    assert (moved_BS[:, reach + 1 :] == 0).all()


def test_packed_documents_slide_by_their_own_positions(params: Any) -> None:
    cut = 7
    index_S = np.arange(16)
    packed_BSD = hidden(
        params,
        TOKENS_BS,
        positions_BS=jnp.broadcast_to(np.where(index_S < cut, index_S, index_S - cut), (2, 16)),
        segments_BS=jnp.broadcast_to(np.where(index_S < cut, 1, 2), (2, 16)),
    )
    for part in (slice(0, cut), slice(cut, 16)):
        alone_BSD = hidden(params, TOKENS_BS[:, part])
        np.testing.assert_allclose(packed_BSD[:, part], alone_BSD, atol=1e-5)


def test_paths_of_a_tree_see_what_sequences_see(params: Any) -> None:
    """Behind a cache of uneven rows, each node's path through the tree is a text of its own."""
    lengths, parents = (9, 6), (-1, 0, 1, 2, 0, 4, 5, 6)
    paths = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    assert max(map(len, paths)) > WINDOW, "some node does not see the cache at all"
    cache = KVCache.create(num_layers=3, num_kv_heads=2, head_dim=8, batch=2, capacity=20)
    output = forward(params, TOKENS_BS[:, :9], config=CONFIG, cache=cache)
    cache = cache.write(output.keys_LBRSC, output.values_LBRSC).advance(jnp.array(lengths))
    rows_BS = np.random.default_rng(1).integers(0, 40, (2, len(parents))).astype(np.int32)
    mask_SS = np.array([[other in path for other in range(len(parents))] for path in paths])
    depths_S = np.array([len(path) - 1 for path in paths])
    tree_BSD = hidden(
        params,
        rows_BS,
        cache=cache,
        positions_BS=jnp.array(lengths)[:, None] + depths_S,
        mask_BSS=jnp.broadcast_to(mask_SS, (2, *mask_SS.shape)),
    )
    for row, length in enumerate(lengths):
        # A text does not see what comes after it.
        texts_NS = np.zeros((len(paths), length + max(map(len, paths))), np.int32)
        for node, path in enumerate(paths):
            text = np.concatenate([TOKENS_BS[row, :length], rows_BS[row, path]])
            texts_NS[node, : len(text)] = text
        ends_N = length + depths_S
        expected_ND = hidden(params, texts_NS)[np.arange(len(paths)), ends_N]
        np.testing.assert_allclose(tree_BSD[row], expected_ND, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ("full_attention",)}, "got 1 entries for 3 layers"),
        ({"layer_types": ("full_attention", "chunked", "x")}, r"got \['chunked', 'x'\], expected"),
        ({"sliding_window": 0}, "sliding_window must be from 1 .* got 0"),
        ({"layer_types": ()}, "sliding_window is 4, but no layer slides"),
    ],
)
def test_layer_types_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
