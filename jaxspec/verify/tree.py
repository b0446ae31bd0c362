"""Verification of a tree of drafted tokens that was chosen, not sampled.

Dimension key: B batch rows, X nodes, Y = X + 1 verified rows (row 0 follows the anchor, row x + 1
follows node x), G drafted slots of a path (the depth of the tree), V vocabulary.

>>> tokens_BX, parents_BX = jnp.array([[1, 2, 3]]), jnp.array([[0, 0, 2]])
>>> target_probs_BYV = jax.nn.one_hot(jnp.array([[2, 0, 3, 0]]), 4)
>>> verdict = verify_tree(jax.random.key(0), tokens_BX, parents_BX, target_probs_BYV, depth=2)
>>> verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()
([2], [0])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import INVALID, at_least_float32, sample_index, signed_ids
from jaxspec.verify.rows import is_float


@array_dataclass
class TreeVerdict:
    """A round emits the tokens of the accepted nodes, then `next_token`; -1 in failed rows."""

    num_accepted_B: jax.Array
    """int32 [B], 0..G nodes accepted."""
    path_BG: jax.Array
    """int32 [B, G], the accepted nodes from the root down, as rows (x + 1: node x); then zeros."""
    next_token_B: jax.Array
    """int32 [B]."""

    @property
    def failed_B(self) -> jax.Array:
        """True [B] where the row could not be judged (see `Verdict`)."""
        return self.num_accepted_B < 0


def verify_tree(
    key: jax.Array,
    tokens_BX: jax.Array,
    parents_BX: jax.Array,
    target_probs_BYV: jax.Array,
    *,
    depth: int,
) -> TreeVerdict:
    """Walks down the tree by tokens drawn from the target.

    At each node a token is drawn from the target's distribution there. If a child holds it, the
    walk continues from that child, otherwise the token is the round's last. All tokens are the
    target's own draws, so the output has its distribution for every tree, however it was chosen.
    The walk accepts as often as rejecting the children one by one as point masses: with the
    probability that a node's children have together.

    Limiting cases: a chain gives `verify_point_mass`; one-hot rows follow the target's argmax.

    Args:
      key: a typed key.
      tokens_BX: integer ids [B, X]; nodes that hold -1 are empty.
      parents_BX: integers [B, X], the row of each node's parent: 0 the anchor, x + 1 node x.
      target_probs_BYV: p, [B, X + 1, V], floats of any width, computed in float32 at least. Rows
        are scaled to sum to one.
      depth: G, the longest path of any row's tree.

    Returns:
      `TreeVerdict`. Failed (-1) where a row on the walk has a NaN, an infinite or a negative value,
      or is all zeros.

    Raises:
      ValueError: shapes or types that do not fit together.
    """
    return walk_tree(
        tokens_BX,
        parents_BX,
        target_probs_BYV,
        draw=lambda step, p_BV: sample_index(jax.random.fold_in(key, step), p_BV),
        depth=depth,
    )


@array_dataclass
class _Walk:
    """Where the walk of each batch row is."""

    step: jax.Array
    row_B: jax.Array
    going_B: jax.Array
    valid_B: jax.Array
    num_accepted_B: jax.Array
    path_BG: jax.Array
    next_token_B: jax.Array


def walk_tree(
    tokens_BX: jax.Array,
    parents_BX: jax.Array,
    target_probs_BYV: jax.Array,
    *,
    draw: Callable[[Any, jax.Array], jax.Array],
    depth: int,
) -> TreeVerdict:
    """`verify_tree` with its draws passed in: draw(step, p_BV) -> token [B], -1 for an invalid p.

    The walk stops when every row has: most rounds end before the tree does. On traced arrays it is
    a `jax.lax.while_loop` and `step` is traced; on concrete ones it is a Python loop and `step` an
    int.
    """
    tokens_BX, parents_BX = signed_ids(jnp.asarray(tokens_BX)), jnp.asarray(parents_BX)
    target_probs_BYV = jnp.asarray(target_probs_BYV)
    shape = tokens_BX.shape
    for name, array in (("tokens_BX", tokens_BX), ("parents_BX", parents_BX)):
        if array.ndim != 2 or array.shape != shape or not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"{name} must hold integers [B, X], the same shape for tokens and parents: got "
                f"{array.dtype} {array.shape}."
            )
    rows_shape = target_probs_BYV.shape
    if (
        len(rows_shape) != 3
        or rows_shape[:2] != (shape[0], shape[1] + 1)
        or not is_float(target_probs_BYV)
    ):
        raise ValueError(
            f"target_probs_BYV must hold floats [{shape[0]}, {shape[1] + 1}, V], a row for the "
            f"anchor and one for each node: got {target_probs_BYV.dtype} {rows_shape}."
        )
    dtype = at_least_float32(target_probs_BYV.dtype)
    batch = shape[0]
    at_rest_B = jnp.zeros(batch, jnp.int32)
    walk = _Walk(
        step=jnp.int32(0),
        row_B=at_rest_B,
        going_B=jnp.ones(batch, bool),
        valid_B=jnp.ones(batch, bool),
        num_accepted_B=at_rest_B,
        path_BG=jnp.zeros((batch, depth), jnp.int32),
        next_token_B=at_rest_B,
    )

    def advance(walk: _Walk, step: int | jax.Array) -> _Walk:
        p_B1V = jnp.take_along_axis(target_probs_BYV, walk.row_B[:, None, None], axis=1)
        token_B = draw(step, p_B1V[:, 0].astype(dtype)).astype(jnp.int32)
        # Empty nodes hold INVALID, which is never a valid draw.
        child_BX = (parents_BX == walk.row_B[:, None]) & (tokens_BX == token_B[:, None])
        child_BX &= (tokens_BX != INVALID) & walk.going_B[:, None]
        # The token after the last level ends the walk, whatever its children.
        going_B = child_BX.any(axis=1) & (step < depth)
        row_B = jnp.where(going_B, child_BX.argmax(axis=1).astype(jnp.int32) + 1, walk.row_B)
        here_G = jnp.arange(depth) == step
        return _Walk(
            step=walk.step + 1,
            row_B=row_B,
            going_B=going_B,
            valid_B=walk.valid_B & ((token_B != INVALID) | ~walk.going_B),
            num_accepted_B=walk.num_accepted_B + going_B,
            path_BG=jnp.where(here_G & going_B[:, None], row_B[:, None], walk.path_BG),
            next_token_B=jnp.where(walk.going_B, token_B, walk.next_token_B),
        )

    inputs = (tokens_BX, parents_BX, target_probs_BYV)
    if any(isinstance(array, jax.core.Tracer) for array in inputs):
        walk = jax.lax.while_loop(
            lambda walk: walk.going_B.any(), lambda walk: advance(walk, walk.step), walk
        )
    else:
        for step in range(depth + 1):
            walk = advance(walk, step)
            # Here only the draws can be traced.
            if not isinstance(walk.going_B, jax.core.Tracer) and not walk.going_B.any():
                break
    return TreeVerdict(
        jnp.where(walk.valid_B, walk.num_accepted_B, INVALID).astype(jnp.int32),
        walk.path_BG,
        jnp.where(walk.valid_B, walk.next_token_B, INVALID),
    )
