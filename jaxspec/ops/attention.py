"""Attention over several sets of keys, merged by log-sum-exp.

One softmax over the union of key sets is computed set by set: each gives its unnormalised output,
the maximum of its scores and the sum of its exponentials, and the parts are then merged. A
block drafter attends to the context and to its own block this way, and a target to its cache and
to the rows being verified, without a mask over (context + all blocks).

Dimension key: I rows of queries (positions x query heads of one key/value head), T cache slots or
other keys, C head width; B batch rows, S tokens of a pass, Q query heads, R key/value heads,
U = Q / R query heads of one of these. Leading axes are batch axes, the same for keys and values.

>>> out = merge(part(q, k_context, v_context, mask), part(q, k_block, v_block))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that a row without a single allowed key gives zero weight in a merge and never NaN.
MASKED = -1e30


class Part(NamedTuple):
    """Attention over one set of keys, before normalisation; all float32."""

    output_IC: jax.Array
    maximum_I1: jax.Array
    total_I1: jax.Array


@jax.custom_vjp
def _scores(q_IC: jax.Array, k_TC: jax.Array) -> jax.Array:
    """Q k^T, float32 [..., I, T]."""
    return jnp.einsum("...ic,...tc->...it", q_IC, k_TC, preferred_element_type=jnp.float32)


def _scores_forward(
    q_IC: jax.Array, k_TC: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _scores(q_IC, k_TC), (q_IC, k_TC)


def _scores_backward(
    inputs: tuple[jax.Array, jax.Array], gradient_IT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    q_IC, k_TC = inputs
    # The keys' gradient is computed as [C, T]: as [T, C] it takes three times as long on a CPU.
    dq_IC = jnp.einsum("...it,...tc->...ic", gradient_IT.astype(k_TC.dtype), k_TC)
    dk_CT = jnp.einsum("...ic,...it->...ct", q_IC, gradient_IT.astype(q_IC.dtype))
    return dq_IC, dk_CT.swapaxes(-1, -2)


_scores.defvjp(_scores_forward, _scores_backward)


def part(
    q_IC: jax.Array,
    k_TC: jax.Array,
    v_TC: jax.Array,
    mask_IT: jax.Array | None = None,
    *,
    scaled: bool = True,
) -> Part:
    """Attention over one set of keys, not yet normalised.

    Args:
      q_IC: queries [..., I, C].
      k_TC: keys [..., T, C].
      v_TC: values [..., T, C].
      mask_IT: True where a row may see a key; broadcastable to [..., I, T]. None: everywhere.
      scaled: whether scores are scaled by C ** -0.5.

    Returns:
      `Part`. A row that sees no key has no weight once it is merged with a part in which it does.
    """
    if scaled:
        q_IC = q_IC * jnp.asarray(q_IC.shape[-1] ** -0.5, q_IC.dtype)
    scores_IT = _scores(q_IC, k_TC)
    if mask_IT is not None:
        scores_IT = jnp.where(mask_IT, scores_IT, MASKED)
    # The maximum only keeps exp() in range; the result does not depend on it.
    maximum_I1 = jax.lax.stop_gradient(scores_IT.max(axis=-1, keepdims=True))
    weights_IT = jnp.exp(scores_IT - maximum_I1)
    total_I1 = weights_IT.sum(axis=-1, keepdims=True)
    output_IC = jnp.einsum(
        "...it,...tc->...ic",
        weights_IT.astype(v_TC.dtype),
        v_TC,
        preferred_element_type=jnp.float32,
    )
    return Part(output_IC, maximum_I1, total_I1)


def merge(*parts: Part) -> jax.Array:
    """The softmax over the union of the parts' keys: float32 [..., I, C].

    Limiting case: with one part it is plain attention.
    """
    maximum_I1 = parts[0].maximum_I1
    for other in parts[1:]:
        maximum_I1 = jnp.maximum(maximum_I1, other.maximum_I1)
    output_IC = jnp.zeros_like(parts[0].output_IC)
    total_I1 = jnp.zeros_like(maximum_I1)
    for each in parts:
        scale_I1 = jnp.exp(each.maximum_I1 - maximum_I1)
        output_IC = output_IC + each.output_IC * scale_I1
        total_I1 = total_I1 + each.total_I1 * scale_I1
    return output_IC / total_I1


def group_queries(q_BSQC: jax.Array, num_kv_heads: int) -> jax.Array:
    """[B, S, Q, C] -> [B, R, S * U, C]: one large product for all rows of a key/value head."""
    batch, length, num_heads, width = q_BSQC.shape
    q_BSRGC = q_BSQC.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, width)
    return q_BSRGC.swapaxes(1, 2).reshape(batch, num_kv_heads, -1, width)


def ungroup_queries(out_BRIC: jax.Array, length: int) -> jax.Array:
    """The inverse of `group_queries`: [B, R, S * U, C] -> [B, S, Q, C]."""
    batch, num_kv_heads, _, width = out_BRIC.shape
    out_BRSUC = out_BRIC.reshape(batch, num_kv_heads, length, -1, width)
    return out_BRSUC.swapaxes(1, 2).reshape(batch, length, -1, width)


def repeat_rows(mask_BST: jax.Array, groups: int) -> jax.Array:
    """A mask by position [B, S, T] as one by attention row [B, 1, S * U, T]."""
    return jnp.repeat(mask_BST, groups, axis=1)[:, None]
