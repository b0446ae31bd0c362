"""Draft trees from the marginals of one block.

A block drafter gives a distribution for every slot in a single pass. Under the product of these
distributions, the likeliest prefixes form a tree: the best one for a given number of nodes. Several
chains that are sampled from the same distributions form another.

Dimension key: B batch rows, G drafted slots, H = G + 1 rows of a chain, V vocabulary, X nodes (of
the tree, of one of its levels, or candidates for one), Y = X + 1 rows (the anchor first),
J ranked choices of a slot, A sampled chains.

>>> log_probs_BGV = jnp.log(jnp.array([[[0.7, 0.3], [0.6, 0.4]]]))
>>> best_first_tree(log_probs_BGV, num_nodes=3).tokens_BX.tolist()
[[0, 0, 1]]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import INVALID


@array_dataclass
class DraftTree:
    """The nodes of a tree; a parent comes before its children."""

    tokens_BX: jax.Array
    """int32 ids; -1 in empty nodes."""
    parents_BX: jax.Array
    """int32, the row of the parent: 0 for the anchor, n + 1 for node n."""
    depths_BX: jax.Array
    """int32, 1 for the anchor's children."""

    def ancestors_BYY(self, *, depth: int) -> jax.Array:
        """True where row i may see row j: itself, and every row from the anchor down to it."""
        batch, nodes = self.tokens_BX.shape
        # The anchor is its own parent.
        parents_BY = jnp.pad(self.parents_BX, ((0, 0), (1, 0)))
        at_BY = jnp.broadcast_to(jnp.arange(nodes + 1), (batch, nodes + 1))
        seen_BYY = jax.nn.one_hot(at_BY, nodes + 1, dtype=bool)
        for _ in range(depth):
            at_BY = jnp.take_along_axis(parents_BY, at_BY, axis=1)
            seen_BYY |= jax.nn.one_hot(at_BY, nodes + 1, dtype=bool)
        return seen_BYY


def largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest values along the last axis, falling, and their places."""
    values, places = jax.lax.top_k(values, count)
    # The barriers hide how the result is used: otherwise XLA sorts whole rows, which takes a
    # hundred times as long on a CPU. One barrier for both aborts XLA on several CPU devices.
    return jax.lax.optimization_barrier(values), jax.lax.optimization_barrier(places)


def _promising(parents: int, choices: int, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a parent and a choice that can be among the best X nodes.

    Parents and choices are numbered by falling probability. A pair cannot be among the best X if X
    pairs with no larger numbers are at least as likely. What remains are the pairs with
    (parent + 1) * (choice + 1) <= X: about X log X of X ** 2.
    """
    parent_X, choice_X = np.divmod(np.arange(parents * choices), choices)
    kept = (parent_X + 1) * (choice_X + 1) <= num_nodes
    return parent_X[kept], choice_X[kept]


def best_first_tree(log_probs_BGV: jax.Array, *, num_nodes: int) -> DraftTree:
    """The `num_nodes` likeliest prefixes under the product of the slots' distributions.

    This is what a best-first search with a heap finds (DDTree), computed level by level with static
    shapes: the best X prefixes of one length continue some of the best X that are shorter by one.

    Args:
      log_probs_BGV: log-probabilities of each drafted slot, [B, G, V].
      num_nodes: X, the budget, at least 1.

    Returns:
      `DraftTree` of X nodes in order of falling probability, so that its first nodes are the tree
      of a smaller budget. Of equally likely prefixes the shorter comes first.

    Raises:
      ValueError: more nodes than there are prefixes, or none.
    """
    batch, slots, vocabulary = log_probs_BGV.shape
    prefixes = sum(vocabulary**length for length in range(1, min(slots, 20) + 1))
    if not 1 <= num_nodes <= prefixes:
        raise ValueError(
            f"A tree of {slots} slots over {vocabulary} tokens has 1 to {prefixes} nodes: got "
            f"{num_nodes}."
        )
    choices = min(num_nodes, vocabulary)
    best_BGJ, ids_BGJ = largest(log_probs_BGV, choices)
    scores_BX = jnp.zeros((batch, 1), log_probs_BGV.dtype)
    levels = []
    first_row = 0  # of the level above; the anchor is row 0, and levels follow one another
    for slot in range(slots):
        parents_X, choices_X = _promising(scores_BX.shape[1], choices, num_nodes)
        grown_BX = scores_BX[:, parents_X] + best_BGJ[:, slot, choices_X]
        scores_BX, pair_BX = jax.lax.top_k(grown_BX, min(num_nodes, len(parents_X)))
        parent_BX = jnp.asarray(parents_X)[pair_BX]
        tokens_BX = jnp.take_along_axis(ids_BGJ[:, slot], jnp.asarray(choices_X)[pair_BX], axis=1)
        levels.append((scores_BX, tokens_BX, parent_BX + first_row))
        first_row += 1 if slot == 0 else levels[-2][0].shape[1]
    scores, tokens, parents = (
        jnp.concatenate(parts, axis=1) for parts in zip(*levels, strict=True)
    )
    depths = jnp.concatenate(
        [jnp.full(level[0].shape[1], slot + 1, jnp.int32) for slot, level in enumerate(levels)]
    )
    # Ties go to the lower index, so to the shorter prefix: no node is kept without its parent.
    _, kept_BX = jax.lax.top_k(scores, num_nodes)
    # Row of each candidate in the tree; the anchor keeps row 0.
    rows = jnp.zeros((batch, scores.shape[1] + 1), jnp.int32)
    order = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)
    rows = jax.vmap(lambda row, kept: row.at[kept + 1].set(order))(rows, kept_BX)
    parents_BX = jnp.take_along_axis(parents, kept_BX, axis=1)
    return DraftTree(
        tokens_BX=jnp.take_along_axis(tokens, kept_BX, axis=1).astype(jnp.int32),
        parents_BX=jnp.take_along_axis(rows, parents_BX, axis=1),
        depths_BX=depths[kept_BX],
    )


def chain_tree(chains_BAG: jax.Array) -> tuple[DraftTree, jax.Array]:
    """Chains that start at one anchor, as a tree that holds what they share only once.

    Args:
      chains_BAG: int32 ids of A chains.

    Returns:
      `DraftTree` of X = A * G nodes, chain after chain; a node that an earlier chain already has is
      empty. Then the rows [B, A, H] of each chain: the anchor's and those of its tokens.
    """
    batch, chains, slots = chains_BAG.shape
    equal_BAAG = (chains_BAG[:, :, None] == chains_BAG[:, None]).astype(jnp.int32)
    first_BAG = jnp.cumprod(equal_BAAG, axis=3).argmax(axis=2).astype(jnp.int32)
    rows_BAG = 1 + first_BAG * slots + jnp.arange(slots, dtype=jnp.int32)
    rows_BAH = jnp.pad(rows_BAG, ((0, 0), (0, 0), (1, 0)))
    new_BAG = first_BAG == jnp.arange(chains, dtype=jnp.int32)[:, None]
    depths_BAG = jnp.broadcast_to(1 + jnp.arange(slots, dtype=jnp.int32), chains_BAG.shape)
    flat = (batch, chains * slots)
    tree = DraftTree(
        tokens_BX=jnp.where(new_BAG, chains_BAG, INVALID).astype(jnp.int32).reshape(flat),
        parents_BX=rows_BAH[:, :, :-1].reshape(flat),
        depths_BX=depths_BAG.reshape(flat),
    )
    return tree, rows_BAH
