"""Experts computed block by block equal every expert computed for every token."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import ExpertsConfig, TransformerConfig
from jaxspec.models.experts import Experts
from jaxspec.models.transformer import Transformer
from jaxspec.parallel.rules import Rules


def slow(config: ExpertsConfig, params: Any, x_SD: jax.Array) -> jax.Array:
    """All experts for all tokens, weighted by 0 where they were not chosen."""
    probabilities = jax.nn.softmax(x_SD @ params["router"]["kernel"])
    threshold = jnp.sort(probabilities)[:, -config.per_token, None]
    weights = jnp.where(probabilities >= threshold, probabilities, 0)
    if config.renormalise:
        weights = weights / weights.sum(-1, keepdims=True)
    gate, up, down = (params[name]["kernel"] for name in ("gate", "up", "down"))
    hidden = jax.nn.silu(jnp.einsum("sd,jdf->sjf", x_SD, gate)) * jnp.einsum(
        "sd,jdf->sjf", x_SD, up
    )
    return jnp.einsum("sj,sjf,jfd->sd", weights, hidden, down)


@pytest.mark.parametrize(
    ("tokens", "experts", "per_token"),
    [(1, 8, 2), (3, 4, 2), (90, 4, 3), (300, 2, 1), (16, 8, 8)],
    ids=["one token", "few", "blocks", "blocks of the largest size", "all experts"],
)
@pytest.mark.parametrize("renormalise", [False, True])
def test_blocks_of_experts_equal_all_experts(
    tokens: int, experts: int, per_token: int, renormalise: bool
) -> None:
    config = ExpertsConfig(experts, per_token, 8, renormalise)
    model = Experts(config)
    # All tokens alike but for a little noise: some experts have most of the rows, some none.
    x_SD = jnp.ones(6) + 0.3 * jax.random.normal(jax.random.key(1), (tokens, 6))
    params = jax.jit(model.init)(jax.random.key(0), x_SD)["params"]

    def fast(params: Any, x_SD: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x_SD)

    def sums(function: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda p, x: (function(p, x) ** 2).sum(), (0, 1)))

    np.testing.assert_allclose(
        jax.jit(fast)(params, x_SD), slow(config, params, x_SD), atol=1e-5, rtol=1e-5
    )
    got = sums(fast)(params, x_SD)
    expected = sums(lambda p, x: slow(config, p, x))(params, x_SD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), got, expected)


MIXED = TransformerConfig(
    vocab_size=20,
    hidden_size=16,
    num_layers=3,
    head_dim=8,
    intermediate_size=24,
    nope_layers=(1,),
    experts=ExpertsConfig(num_experts=4, per_token=2, width=8, dense_layers=(0,)),
)


@pytest.mark.parametrize("setting", ["remat", "unroll_layers"])
def test_mixed_layers_compute_the_same_however_they_run(setting: str) -> None:
    tokens_BS = jnp.arange(6)[None]
    params = jax.jit(Transformer(MIXED).init)(jax.random.key(0), tokens_BS)["params"]

    def gradients(config: TransformerConfig) -> Any:
        def total(params: Any) -> jax.Array:
            return (Transformer(config).apply({"params": params}, tokens_BS).hidden_BSD ** 3).sum()

        return jax.jit(jax.grad(total))(params)

    expected = gradients(MIXED)
    got = gradients(dataclasses.replace(MIXED, **{setting: True}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, expected)
    # Layer 0 has no experts, the others have no MLP.
    assert not expected["layers"]["experts"]["gate"]["kernel"][0].any()
    assert expected["layers"]["experts"]["gate"]["kernel"][1].any()
    assert not expected["layers"]["mlp"]["gate"]["kernel"][1:].any()


def test_experts_are_split_like_an_mlp() -> None:
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
    for name, split in (("gate", ("fsdp", "tensor")), ("down", ("tensor", "fsdp"))):
        spec = Rules().spec(("layers", "experts", name, "kernel"), (3, 4, 16, 8), mesh)
        assert tuple(spec) == (None, None, *split)
