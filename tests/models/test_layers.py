"""Products of one row, which some platforms compute with a second one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.layers import _product_of_two, product


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_product_is_that_of_its_rows(rows):
    keys = jax.random.split(jax.random.key(0), 2)
    x_ID, kernel_DF = jax.random.normal(keys[0], (rows, 16)), jax.random.normal(keys[1], (16, 8))
    assert np.array_equal(jax.jit(product)(x_ID, kernel_DF), jax.jit(jnp.matmul)(x_ID, kernel_DF))
    pair = jax.jit(_product_of_two)(x_ID[:1], kernel_DF)
    assert pair.shape == (1, 8)
    assert np.allclose(pair, x_ID[:1] @ kernel_DF, rtol=1e-6, atol=1e-6)
