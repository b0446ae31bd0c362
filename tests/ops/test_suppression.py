"""Suppressed tokens: their logits, and nothing else, become -inf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.ops.suppression import suppress


def test_only_the_named_ids_change():
    logits = jnp.array([[0.5, 1.5, jnp.nan, 3.0], [0.0, jnp.nan, 2.0, -1.0]])
    for found in (suppress(logits, (1, 3)), jax.jit(lambda x: suppress(x, (1, 3)))(logits)):
        expected = [[0.5, -np.inf, np.nan, -np.inf], [0.0, -np.inf, 2.0, -np.inf]]
        np.testing.assert_array_equal(found, expected)
    assert suppress(logits, ()) is logits


def test_impossible_ids_are_refused():
    logits = jnp.zeros((2, 3))
    for ids in ((3,), (-1, 0)):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.2"):
            suppress(logits, ids)
    with pytest.raises(ValueError, match="All 3 tokens are suppressed"):
        suppress(logits, (0, 1, 2))
