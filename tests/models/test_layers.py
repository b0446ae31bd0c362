"""Products of one row, which some platforms compute with a second one; tracing of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models import layers
from jaxspec.models.layers import _product_of_two, product
from jaxspec.models.transformer import Transformer
from tests.decoding import tiny


def test_a_single_row_of_text_whose_tokens_a_mesh_splits():
    """There, the tokens are not flattened to one axis."""
    x_BSD, kernel_DF = jnp.ones((1, 6, 4)), jnp.eye(4)
    assert np.array_equal(jax.jit(product)(x_BSD, kernel_DF), x_BSD)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_product_is_that_of_its_rows(rows):
    keys = jax.random.split(jax.random.key(0), 2)
    x_ID, kernel_DF = jax.random.normal(keys[0], (rows, 16)), jax.random.normal(keys[1], (16, 8))
    assert np.array_equal(jax.jit(product)(x_ID, kernel_DF), jax.jit(jnp.matmul)(x_ID, kernel_DF))
    pair = jax.jit(_product_of_two)(x_ID[:1], kernel_DF)
    assert pair.shape == (1, 8)
    assert np.allclose(pair, x_ID[:1] @ kernel_DF, rtol=1e-6, atol=1e-6)


def test_a_pass_traces_a_layer_once(monkeypatch):
    """Flax's scan traces its body twice by default: a quarter of the time to trace a loop."""
    traced = []
    rotate = layers.rope.rotate
    monkeypatch.setattr(
        layers.rope, "rotate", lambda *arguments: traced.append(1) or rotate(*arguments)
    )
    model, tokens = Transformer(tiny.ARCHITECTURE), jnp.zeros((1, 4), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    del traced[:]
    jax.eval_shape(model.apply, variables, tokens)
    assert len(traced) == 2, "queries and keys"
