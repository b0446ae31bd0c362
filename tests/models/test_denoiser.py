"""Denoisers: shapes, masks, and block diffusion with and without its cache.

tests/checkpoints/families/test_mdlm.py compares the DiT with an independent forward pass.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.shapes import flatten_paths
from jaxspec.config import DiTConfig, TransformerConfig
from jaxspec.models.bidirectional import BidirectionalTransformer
from jaxspec.models.block_diffusion import (
    block_causal_mask,
    block_diffusion_mask,
    paired_inputs,
    store_clean,
)
from jaxspec.models.cache import KVCache
from jaxspec.models.dit import DiT
from jaxspec.models.transformer import Transformer

VOCABULARY, MASK, BATCH, LENGTH, BLOCK = 11, 10, 2, 12, 4
DIT = DiTConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    conditioning_size=8,
    time_conditioning=True,
)
PLAIN = TransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
)
MODELS: dict[str, Any] = {"dit": DiT(DIT), "plain": BidirectionalTransformer(PLAIN)}
TOKENS = np.random.default_rng(0).integers(0, MASK, (BATCH, LENGTH)).astype(np.int32)
NOISY = np.where(np.random.default_rng(1).random(TOKENS.shape) < 0.5, MASK, TOKENS)


@functools.cache
def parameters(name: str) -> Any:
    """Far from the initial values, at which the DiT says nothing."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.device_get(jax.jit(MODELS[name].init)(jax.random.key(0), tokens)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.2 * rng.standard_normal(x.shape).astype("f4")), params
    )


@functools.partial(jax.jit, static_argnums=0)
def forward(name: str, params: Any, tokens: Any, **options: Any) -> jax.Array:
    return MODELS[name].apply({"params": params}, tokens, **options).logits_BSV


def logits_of(name: str, tokens: Any, **options: Any) -> np.ndarray:
    return np.asarray(forward(name, parameters(name), np.asarray(tokens), **options))


@pytest.mark.parametrize("name", MODELS)
def test_every_token_sees_every_other_one(name):
    base = logits_of(name, TOKENS)
    assert base.shape == (BATCH, LENGTH, VOCABULARY) and base.dtype == np.float32
    for changed in (0, LENGTH - 1):
        other = TOKENS.copy()
        other[:, changed] = (other[:, changed] + 1) % MASK
        assert (np.abs(logits_of(name, other) - base).max(-1) > 1e-5).all()


@pytest.mark.parametrize("name", MODELS)
def test_documents_do_not_see_each_other(name):
    cut = LENGTH // 2
    segments = (np.arange(LENGTH) >= cut).astype(int)[None].repeat(BATCH, 0)
    positions = (np.arange(LENGTH) % cut)[None].repeat(BATCH, 0)
    packed = logits_of(name, TOKENS, segments_BS=segments, positions_BS=positions)
    for part in (slice(0, cut), slice(cut, LENGTH)):
        np.testing.assert_allclose(packed[:, part], logits_of(name, TOKENS[:, part]), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_only_the_wanted_rows(name):
    rows = np.array([[3, 0], [7, 11]])
    got = logits_of(name, TOKENS, rows_BI=rows)
    expected = np.take_along_axis(logits_of(name, TOKENS), rows[..., None], axis=1)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_plain_model_has_the_parameters_of_a_target():
    tokens = jnp.zeros((1, 4), jnp.int32)
    for config in (PLAIN, dataclasses.replace(PLAIN, tie_embeddings=False)):
        trees = [
            jax.eval_shape(model(config).init, jax.random.key(0), tokens)["params"]
            for model in (Transformer, BidirectionalTransformer)
        ]
        assert jax.tree.map(jnp.shape, trees[0]) == jax.tree.map(jnp.shape, trees[1])


def test_plain_model_under_a_causal_mask_is_the_transformer():
    model, params = Transformer(PLAIN), parameters("plain")

    @jax.jit
    def transformer(tokens):
        output = model.apply({"params": params}, tokens)
        return model.apply({"params": params}, output.hidden_BSD, method="logits")

    expected = transformer(jnp.asarray(TOKENS))
    causal = jnp.asarray(block_causal_mask(LENGTH, block_size=1))[None]
    np.testing.assert_allclose(logits_of("plain", TOKENS, mask_BSS=causal), expected, atol=1e-5)


def test_untrained_dit_knows_nothing():
    params = jax.jit(MODELS["dit"].init)(jax.random.key(0), jnp.asarray(TOKENS))["params"]
    assert not np.asarray(forward("dit", params, jnp.asarray(TOKENS))).any()


def test_noise_counts_only_with_time_conditioning():
    noise = np.array([0.5, 2.0], np.float32)
    base, conditioned = logits_of("dit", TOKENS), logits_of("dit", TOKENS, sigma=noise)
    assert np.abs(base - conditioned).max() > 1e-3
    by_token = np.broadcast_to(noise[:, None], TOKENS.shape)
    np.testing.assert_allclose(logits_of("dit", TOKENS, sigma=by_token), conditioned, atol=1e-5)
    zero = logits_of("dit", TOKENS, sigma=np.zeros(BATCH, np.float32))
    np.testing.assert_allclose(zero, base, atol=1e-5)
    model = DiT(dataclasses.replace(DIT, time_conditioning=False))
    apply = jax.jit(model.apply)
    without = apply({"params": parameters("dit")}, jnp.asarray(TOKENS), sigma=noise)
    np.testing.assert_allclose(without.logits_BSV, base, atol=1e-5)
    with pytest.raises(ValueError, match="one value per sequence"):
        model.apply({"params": parameters("dit")}, jnp.asarray(TOKENS), sigma=jnp.zeros((3,)))


def test_released_shape():
    tokens = jnp.zeros((1, 1024), jnp.int32)
    model = DiT(DiTConfig())
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    shapes = {path: leaf.shape for path, leaf in flatten_paths(params).items()}
    assert shapes["layers/qkv/kernel"] == (12, 768, 2304)
    assert shapes["layers/modulation/kernel"] == (12, 128, 4608)
    assert shapes["head/kernel"] == (768, 50_258) and shapes["embed/embedding"] == (50_258, 768)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == pytest.approx(169.6e6, rel=1e-3)
    output = jax.eval_shape(model.apply, {"params": params}, tokens)
    assert output.logits_BSV.shape == (1, 1024, 50_258)


def test_dit_config_refuses_impossible_widths():
    with pytest.raises(ValueError, match="even width"):
        DiTConfig(hidden_size=18, num_heads=6)
    with pytest.raises(ValueError, match="num_layers"):
        DiTConfig(num_layers=0)


@pytest.mark.parametrize("unroll", [False, True])
def test_gradients_are_finite_with_rematerialisation(unroll):
    model = DiT(dataclasses.replace(DIT, remat=True, unroll_layers=unroll))

    def loss(params):
        return jax.nn.log_softmax(model.apply({"params": params}, TOKENS).logits_BSV)[..., 0].sum()

    gradients = jax.device_get(jax.jit(jax.grad(loss))(parameters("dit")))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["layers"]["qkv"]["kernel"]).max() > 0


# Block diffusion.


def test_block_masks_written_out():
    mask = block_diffusion_mask(4, block_size=2)
    assert mask.astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]
    assert (block_causal_mask(4, block_size=2) == mask[4:, 4:]).all()
    assert block_causal_mask(3, block_size=5).all()
    with pytest.raises(ValueError, match="block_size"):
        block_diffusion_mask(4, block_size=0)


SIGMA = np.array([[0.1, 0.7, 2.0], [1.0, 0.3, 0.2]], np.float32)


@functools.cache
def paired_logits(name: str) -> np.ndarray:
    sigma = np.repeat(SIGMA, BLOCK, axis=1)
    inputs = paired_inputs(
        jnp.asarray(NOISY), jnp.asarray(TOKENS), block_size=BLOCK, sigma_BS=sigma
    )
    return logits_of(name, inputs.pop("tokens_BS"), **inputs)


@functools.partial(jax.jit, static_argnums=0)
def store(name: str, params: Any, cache: KVCache, clean: Any) -> KVCache:
    return store_clean(MODELS[name], params, cache, clean, block_size=BLOCK)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt_blocks", [0, 2])
def test_blocks_against_a_cache_equal_one_paired_pass(name, prompt_blocks):
    expected = paired_logits(name)
    assert expected.shape == (BATCH, LENGTH, VOCABULARY)
    config = MODELS[name].config
    cache = KVCache.create(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        batch=BATCH,
        capacity=LENGTH + 3,
    )
    params = parameters(name)

    if prompt_blocks:
        cache = store(name, params, cache, TOKENS[:, : prompt_blocks * BLOCK])
    for block in range(prompt_blocks, LENGTH // BLOCK):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        got = logits_of(name, NOISY[:, part], cache=cache, sigma=SIGMA[:, block])
        np.testing.assert_allclose(got, expected[:, part], atol=1e-5)
        cache = store(name, params, cache, TOKENS[:, part])
    assert cache.lengths_B.tolist() == [LENGTH] * BATCH


def test_a_block_does_not_see_its_own_clean_tokens():
    base = paired_logits("dit")
    clean = TOKENS.copy()
    clean[:, 2 * BLOCK :] = (clean[:, 2 * BLOCK :] + 1) % MASK
    inputs = paired_inputs(jnp.asarray(NOISY), jnp.asarray(clean), block_size=BLOCK)
    again = paired_inputs(jnp.asarray(NOISY), jnp.asarray(TOKENS), block_size=BLOCK)
    first, second = (logits_of("dit", i.pop("tokens_BS"), **i) for i in (inputs, again))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(base - second).max() > 1e-3
    with pytest.raises(ValueError, match="one shape"):
        paired_inputs(jnp.asarray(NOISY), jnp.asarray(clean[:, 1:]), block_size=BLOCK)
