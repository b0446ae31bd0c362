"""Embedding and head: from token ids to hidden states, and from hidden states to logits.

Dimension key: S tokens, D model width, V vocabulary.

>>> Embedding(rows=64, width=32, dtype="float32", param_dtype="float32").width
32
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.custom_derivatives import CustomVJPPrimal

from jaxspec.parallel.constraints import flat_tokens, rows, whole


class Embedding(nn.Module):
    """Rows of a table, and (for tied heads) products with it."""

    rows: int
    width: int
    dtype: str
    param_dtype: str

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding", nn.initializers.normal(0.02), (self.rows, self.width), self.param_dtype
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[...] int32 -> [..., D]."""
        table = whole(self.embedding, self.name, name="embedding")
        return rows(table[tokens].astype(self.dtype))

    def attend(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        table = whole(self.embedding, self.name, name="embedding", dtype=self.dtype)
        return head_product(hidden, table.T)


class Head(nn.Module):
    """An output head that is not tied to the embedding."""

    rows: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        kernel_DV = self.param(
            "kernel",
            nn.initializers.normal(0.02),
            (hidden.shape[-1], self.rows),
            self.param_dtype,
        )
        return head_product(hidden, whole(kernel_DV, self.name, dtype=self.dtype))


def head_product(hidden: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """Logits in float32: differences of large logits decide acceptance, bfloat16 rounds them."""
    flat = flat_tokens(hidden).astype(kernel_DV.dtype)
    logits = _wide_product(flat, kernel_DV)
    logits = logits.reshape(*hidden.shape[:-1], kernel_DV.shape[-1])
    return rows(logits, columns="vocab")


@jax.custom_vjp
def _wide_product(flat_SD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    """float32 [..., S, V], whose gradient is rounded to the kernel's type before it is multiplied.

    A GPU would otherwise multiply float32 by bfloat16 in float32, at half the speed or less.
    """
    return jnp.dot(flat_SD, kernel_DV, preferred_element_type=jnp.float32)


def _wide_product_forward(
    flat_SD: CustomVJPPrimal, kernel_DV: CustomVJPPrimal
) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
    operands = (
        flat_SD.value if kernel_DV.perturbed else None,
        kernel_DV.value if flat_SD.perturbed else None,
    )
    return _wide_product(flat_SD.value, kernel_DV.value), operands


def _wide_product_backward(
    operands: tuple[jax.Array | None, jax.Array | None], cotangent_SV: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
    """Of a frozen kernel, or of constant inputs, no gradient is computed: None is zero."""
    flat_SD, kernel_DV = operands
    to_hidden_SD = to_kernel_DV = None
    if kernel_DV is not None:
        to_hidden_SD = jnp.dot(cotangent_SV.astype(kernel_DV.dtype), kernel_DV.T)
    if flat_SD is not None:
        rows_SD, rows_SV = (x.reshape(-1, x.shape[-1]) for x in (flat_SD, cotangent_SV))
        to_kernel_DV = jnp.dot(rows_SD.T, rows_SV.astype(flat_SD.dtype))
    return to_hidden_SD, to_kernel_DV


_wide_product.defvjp(_wide_product_forward, _wide_product_backward, symbolic_zeros=True)


def softcap(logits: jax.Array, cap: float) -> jax.Array:
    """Logits as c tanh(logits / c), with the cap as c; 0: as they are."""
    return cap * jnp.tanh(logits / cap) if cap else logits
