"""Logits are float32; the products that make them and their gradient are of the model's type."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.vocabulary import head_product

TOKENS, WIDTH, VOCABULARY = 6, 8, 12


def inputs(dtype: str):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, TOKENS // 2, WIDTH)).astype(dtype)
    kernel = jax.random.normal(keys[1], (WIDTH, VOCABULARY)).astype(dtype)
    return hidden, kernel, jax.random.normal(keys[2], (2, TOKENS // 2, VOCABULARY))


def products(jaxpr):
    """The types of both operands of every matrix product."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(str(operand.aval.dtype) for operand in equation.invars)
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from products(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_are_those_of_the_plain_product(dtype):
    hidden, kernel, cotangent = inputs(dtype)

    def plain(hidden, kernel):
        return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)

    logits, pullback = jax.vjp(jax.jit(head_product), hidden, kernel)
    expected, plain_pullback = jax.vjp(jax.jit(plain), hidden, kernel)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)
    # A bfloat16 has 8 bits: sums of 12 products of rounded factors differ by a few of the last.
    tolerance = {"float32": 1e-6, "bfloat16": 2**-6}[dtype]
    for got, want in zip(pullback(cotangent), plain_pullback(cotangent), strict=True):
        assert got.dtype == dtype
        largest = np.abs(want).max().astype(np.float32)
        np.testing.assert_allclose(
            got.astype(np.float32), want.astype(np.float32), atol=tolerance * largest
        )


def test_no_product_mixes_types():
    hidden, kernel, cotangent = inputs("bfloat16")

    def loss(hidden, kernel):
        return (head_product(hidden, kernel) * cotangent).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, kernel).jaxpr
    found = list(products(jaxpr))
    assert found == 3 * [("bfloat16", "bfloat16")]


def test_a_frozen_head_has_one_product_back():
    hidden, kernel, cotangent = inputs("float32")
    gradient = jax.grad(lambda hidden: (head_product(hidden, kernel) * cotangent).sum())
    assert len(list(products(jax.make_jaxpr(gradient)(hidden).jaxpr))) == 2
