"""Experts computed block by block equal every expert computed for every token."""

from __future__ import annotations

import dataclasses
import functools
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


SIZES = {
    "one token": (1, 8, 2),
    "few": (3, 4, 2),
    "blocks": (90, 4, 3),
    "blocks of the largest size": (300, 2, 1),
    "all experts": (16, 8, 8),
}
RARELY = pytest.mark.slow("these sizes are tried without it, and it is tried with other sizes")


@pytest.mark.parametrize(
    ("tokens", "experts", "per_token", "renormalise"),
    [
        pytest.param(
            *sizes,
            renormalise,
            id=f"{renormalise}-{name}",
            marks=[RARELY] if renormalise and name not in ("few", "blocks") else [],
        )
        for renormalise in (False, True)
        for name, sizes in SIZES.items()
    ],
)
def test_blocks_of_experts_equal_all_experts(
    tokens: int, experts: int, per_token: int, renormalise: bool
) -> None:
    config = ExpertsConfig(experts, per_token, 8, renormalise)
    model = Experts(config)
    # All tokens alike but for a little noise: some experts have most of the rows, some none.
    generator = np.random.default_rng(1)
    x_SD = (1 + 0.3 * generator.standard_normal((tokens, 6))).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x_SD)["params"]
    params = jax.tree.map(
        lambda leaf: (0.4 * generator.standard_normal(leaf.shape)).astype(np.float32), shapes
    )

    def fast(params: Any, x_SD: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x_SD)

    def with_sums(function: Any) -> Any:
        sums = jax.value_and_grad(lambda p, x: (function(p, x) ** 2).sum(), (0, 1))
        return jax.jit(lambda p, x: (function(p, x), sums(p, x)))(params, x_SD)

    output, got = with_sums(fast)
    wanted, expected = with_sums(functools.partial(slow, config))
    np.testing.assert_allclose(output, wanted, atol=1e-5, rtol=1e-5)
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


MIXED_TOKENS_BS = np.arange(6)[None]


@functools.cache
def mixed_params() -> Any:
    return jax.jit(Transformer(MIXED).init)(jax.random.key(0), MIXED_TOKENS_BS)["params"]


@functools.cache
def gradients_of(config: TransformerConfig) -> Any:
    def total(params: Any) -> jax.Array:
        output = Transformer(config).apply({"params": params}, MIXED_TOKENS_BS)
        return (output.hidden_BSD**3).sum()

    return jax.device_get(jax.jit(jax.grad(total))(mixed_params()))


@pytest.mark.parametrize("setting", ["remat", "unroll_layers"])
def test_mixed_layers_compute_the_same_however_they_run(setting: str) -> None:
    expected = gradients_of(MIXED)
    got = gradients_of(dataclasses.replace(MIXED, **{setting: True}))
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
