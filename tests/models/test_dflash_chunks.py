"""Attention over a few blocks at a time is the same function as over all of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import DrafterConfig, TransformerConfig
from jaxspec.models.dflash import DFlash, chunks_that_fit, resolve_config

BLOCKS, SLOTS, CONTEXT, WIDTH = 6, 4, 24, 16
TARGET = TransformerConfig(
    vocab_size=32, hidden_size=WIDTH, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8
)
CONFIG = resolve_config(DrafterConfig(block_size=SLOTS), target=TARGET, mask_token_id=1)
SLIDING = dataclasses.replace(
    CONFIG, layer_types=("full_attention", "sliding_attention"), sliding_window=7
)


@functools.cache
def weights() -> dict:
    """Of every drafter here: they have the same shapes."""
    initialise = jax.jit(functools.partial(DFlash(CONFIG, WIDTH).init, method="initialise"))
    return initialise(jax.random.key(0), jnp.zeros((1, 2, 3 * WIDTH)))["params"]


def output(params: dict, config: DrafterConfig) -> jax.Array:
    """Of a drafter with fixed inputs."""
    drafter = DFlash(config, WIDTH)
    generator = np.random.default_rng(0)
    features = generator.standard_normal((2, CONTEXT, 3 * WIDTH)).astype(np.float32)
    embeddings = generator.standard_normal((2, BLOCKS, SLOTS, WIDTH)).astype(np.float32)
    # The first block sees no context at all.
    anchors = np.array([[0, 3, 8, 11, 17, 23], [0, 1, 2, 20, 21, 22]])
    mask = np.arange(CONTEXT) < anchors[..., None]
    positions = np.broadcast_to(np.arange(CONTEXT), (2, CONTEXT))
    context = drafter.apply({"params": params}, features, positions, method="context")
    slots = anchors[..., None] + np.arange(SLOTS)
    return drafter.apply({"params": params}, embeddings, slots, *context, mask)


@functools.cache
def hidden_and_gradients(config: DrafterConfig) -> tuple[jax.Array, dict]:
    """Output of a drafter with fixed weights and inputs, and the gradient of all its parameters."""

    def weighted(params: dict) -> tuple[jax.Array, jax.Array]:
        hidden = output(params, config)
        factors = np.cos(np.arange(BLOCKS * SLOTS * WIDTH)).reshape(BLOCKS, SLOTS, WIDTH)
        return (hidden * factors.astype(np.float32)).sum(), hidden

    gradients, hidden = jax.jit(jax.grad(weighted, has_aux=True))(weights())
    return hidden, jax.device_get(gradients)


@pytest.mark.parametrize("config", [CONFIG, SLIDING], ids=["full", "sliding"])
def test_chunks_change_neither_output_nor_gradients(config: DrafterConfig) -> None:
    whole, gradients = hidden_and_gradients(config)
    parts, part_gradients = hidden_and_gradients(
        dataclasses.replace(config, chunk_blocks=3, remat=True)
    )
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients)) > 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), part_gradients, gradients
    )


@pytest.mark.parametrize(
    ("policy", "again"),
    [
        ("nothing_saveable", {"projections", "scores"}),
        ("dots_with_no_batch_dims_saveable", {"scores"}),
    ],
)
def test_a_policy_keeps_what_it_says(policy: str, again: set[str]) -> None:
    kept = products(dataclasses.replace(CONFIG, remat=True, remat_policy=policy))
    plain = products(CONFIG)
    assert {kind for kind in plain if kept[kind] > plain[kind]} == again


def test_a_policy_changes_no_gradient() -> None:
    config = dataclasses.replace(
        CONFIG, remat=True, remat_policy="dots_with_no_batch_dims_saveable"
    )
    for got, want in zip(hidden_and_gradients(config), hidden_and_gradients(CONFIG), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), got, want)


@functools.cache
def products(config: DrafterConfig) -> dict[str, int]:
    """Matrix products in value and gradient: those of attention have batch axes."""
    drafter = DFlash(config, WIDTH)
    features = np.zeros((2, CONTEXT, 3 * WIDTH), np.float32)

    def loss(params: dict) -> jax.Array:
        positions = np.broadcast_to(np.arange(CONTEXT), (2, CONTEXT))
        context = drafter.apply({"params": params}, features, positions, method="context")
        embeddings = np.ones((2, BLOCKS, SLOTS, WIDTH), np.float32)
        slots = np.broadcast_to(np.arange(SLOTS), (2, BLOCKS, SLOTS))
        mask = np.ones((2, BLOCKS, CONTEXT), bool)
        return drafter.apply({"params": params}, embeddings, slots, *context, mask).sum()

    counts = {"projections": 0, "scores": 0}

    def walk(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                _, (batch_axes, _) = equation.params["dimension_numbers"]
                counts["scores" if batch_axes else "projections"] += 1
            for value in equation.params.values():
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    walk(getattr(value, "jaxpr", value))

    walk(jax.make_jaxpr(jax.grad(loss))(weights()).jaxpr)
    return counts


@pytest.mark.parametrize(
    ("blocks", "length", "platform", "size"),
    [
        (96, 1024, "cpu", 96),
        (96, 1024, "gpu", 16),
        (96, 2048, "tpu", 8),
        (32, 256, "tpu", 32),
        (97, 4096, "tpu", 1),
        (96, 32_768, "cpu", 8),
    ],
)
def test_chunks_are_chosen_by_the_size_of_their_scores(blocks, length, platform, size) -> None:
    scores = 12 * 16 * length
    assert chunks_that_fit(blocks=blocks, block_scores=scores, platform=platform) == size


def test_what_is_left_open_is_chosen_for_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = hidden_and_gradients(CONFIG)
    seen = []

    def chosen(**sizes: object) -> int:
        seen.append(sizes)
        return 2

    monkeypatch.setattr("jaxspec.models.dflash.chunks_that_fit", chosen)
    parts = jax.jit(lambda params: output(params, CONFIG))(weights())
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)
    drafting = [each for each in seen if each["blocks"] == BLOCKS]
    assert drafting[0] == {
        "blocks": BLOCKS, "block_scores": 4 * SLOTS * CONTEXT, "platform": "cpu"
    }  # fmt: skip


def test_chunks_must_divide_the_blocks() -> None:
    with pytest.raises(ValueError, match=r"chunk_blocks is 4, but must divide the 6 blocks"):
        output(weights(), dataclasses.replace(CONFIG, chunk_blocks=4))


def test_chunks_hold_fewer_scores_at_once() -> None:
    def temporaries(chunk: int) -> int:
        config = dataclasses.replace(CONFIG, chunk_blocks=chunk)
        drafter = DFlash(config, WIDTH)
        blocks, context = 128, 4096
        shapes = (
            jax.ShapeDtypeStruct((1, blocks, SLOTS, WIDTH), jnp.float32),
            jax.ShapeDtypeStruct((1, blocks, SLOTS), jnp.int32),
            *[jax.ShapeDtypeStruct((2, 1, 2, context, 8), jnp.float32)] * 2,
            jax.ShapeDtypeStruct((1, blocks, context), jnp.bool_),
        )
        gradient = jax.grad(lambda p, *rest: drafter.apply({"params": p}, *rest).sum())
        compiled = jax.jit(gradient).lower(weights(), *shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 128 * SLOTS * TARGET.num_heads * 4096 * 4
    assert temporaries(8) < scores < temporaries(0)
