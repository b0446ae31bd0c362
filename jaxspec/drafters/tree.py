"""Draft trees from the marginals of one block.

A block drafter gives a distribution for every slot from a single pass. Under their product, the
prefixes of highest probability make a tree: the best one under a budget of nodes. Several chains
that were sampled from it make another.

Dimension key: B batch, G drafted slots, V vocabulary, N nodes, R = N + 1 rows (the anchor first),
W width of a level (the nodes that it may add), C choices of a slot, K chains, H = G + 1.

>>> tree = best_first_tree(jax.nn.log_softmax(logits_BGV), num_nodes=32)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxspec.ops.sampling import INVALID


@struct.dataclass
class DraftTree:
    """Nodes, of which a parent stands before its children."""

    tokens_BN: jax.Array
    """int32 ids; -1 in empty nodes."""
    parents_BN: jax.Array
    """int32, the row that the node hangs on: 0 the anchor, n + 1 node n."""
    depths_BN: jax.Array
    """int32, 1 for the anchor's children."""

    def ancestors_BRR(self, *, depth: int) -> jax.Array:
        """True where row i may see row j: itself, and what lies between it and the anchor."""
        batch, nodes = self.tokens_BN.shape
        # The anchor is its own parent.
        parents_BR = jnp.pad(self.parents_BN, ((0, 0), (1, 0)))
        at_BR = jnp.broadcast_to(jnp.arange(nodes + 1), (batch, nodes + 1))
        seen_BRR = jax.nn.one_hot(at_BR, nodes + 1, dtype=bool)
        for _ in range(depth):
            at_BR = jnp.take_along_axis(parents_BR, at_BR, axis=1)
            seen_BRR |= jax.nn.one_hot(at_BR, nodes + 1, dtype=bool)
        return seen_BRR


def _promising(parents: int, choices: int, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a parent and a choice, each numbered by falling probability, that may be kept.

    A pair is not among the best N if N pairs of no larger numbers are at least as likely: only
    (parent + 1) * (choice + 1) <= N is left, about N log N pairs of N ** 2.
    """
    parent_P, choice_P = np.divmod(np.arange(parents * choices), choices)
    kept = (parent_P + 1) * (choice_P + 1) <= num_nodes
    return parent_P[kept], choice_P[kept]


def best_first_tree(log_probs_BGV: jax.Array, *, num_nodes: int) -> DraftTree:
    """The `num_nodes` prefixes that are likeliest under the product of the slots' distributions.

    What a best-first search with a heap finds (DDTree), level by level and with static shapes: the
    best N prefixes of a length continue some of the best N of the length before.

    Args:
      log_probs_BGV: log-probabilities of each drafted slot, [B, G, V].
      num_nodes: N, the budget, at least 1.

    Returns:
      `DraftTree` of N nodes in order of falling probability, so that the first of them are what a
      smaller budget gives. Equal probabilities go to the shorter prefix.

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
    # Behind a barrier: where XLA sees what becomes of the result it sorts whole rows for it, which
    # takes a hundred times as long on a CPU.
    best_BGC, ids_BGC = jax.lax.optimization_barrier(jax.lax.top_k(log_probs_BGV, choices))
    scores_BW = jnp.zeros((batch, 1), log_probs_BGV.dtype)
    levels = []
    first_row = 0  # of the level before, counting the anchor as 0 and then level by level
    for slot in range(slots):
        parents_P, choices_P = _promising(scores_BW.shape[1], choices, num_nodes)
        grown_BP = scores_BW[:, parents_P] + best_BGC[:, slot, choices_P]
        scores_BW, pair_BW = jax.lax.top_k(grown_BP, min(num_nodes, len(parents_P)))
        parent_BW = jnp.asarray(parents_P)[pair_BW]
        tokens_BW = jnp.take_along_axis(ids_BGC[:, slot], jnp.asarray(choices_P)[pair_BW], axis=1)
        levels.append((scores_BW, tokens_BW, parent_BW + first_row))
        first_row += 1 if slot == 0 else levels[-2][0].shape[1]
    scores, tokens, parents = (
        jnp.concatenate(parts, axis=1) for parts in zip(*levels, strict=True)
    )
    depths = jnp.concatenate(
        [jnp.full(level[0].shape[1], slot + 1, jnp.int32) for slot, level in enumerate(levels)]
    )
    # Ties fall to the lower index, hence to the shorter prefix: no node without its parent.
    _, kept_BN = jax.lax.top_k(scores, num_nodes)
    # Row of each candidate in the tree; the anchor keeps row 0.
    rows = jnp.zeros((batch, scores.shape[1] + 1), jnp.int32)
    order = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)
    rows = jax.vmap(lambda row, kept: row.at[kept + 1].set(order))(rows, kept_BN)
    parents_BN = jnp.take_along_axis(parents, kept_BN, axis=1)
    return DraftTree(
        tokens_BN=jnp.take_along_axis(tokens, kept_BN, axis=1).astype(jnp.int32),
        parents_BN=jnp.take_along_axis(rows, parents_BN, axis=1),
        depths_BN=depths[kept_BN],
    )


def chain_tree(chains_BKG: jax.Array) -> tuple[DraftTree, jax.Array]:
    """Chains that start at one anchor, with what they have in common held once.

    Args:
      chains_BKG: int32 ids of K chains.

    Returns:
      `DraftTree` of N = K * G nodes, chain after chain; a node that an earlier chain has as well is
      empty. And the rows [B, K, H] that stand for a chain: the anchor's and those of its tokens.
    """
    batch, chains, slots = chains_BKG.shape
    equal_BKKG = (chains_BKG[:, :, None] == chains_BKG[:, None]).astype(jnp.int32)
    first_BKG = jnp.cumprod(equal_BKKG, axis=3).argmax(axis=2).astype(jnp.int32)
    rows_BKG = 1 + first_BKG * slots + jnp.arange(slots, dtype=jnp.int32)
    rows_BKH = jnp.pad(rows_BKG, ((0, 0), (0, 0), (1, 0)))
    new_BKG = first_BKG == jnp.arange(chains, dtype=jnp.int32)[:, None]
    depths_BKG = jnp.broadcast_to(1 + jnp.arange(slots, dtype=jnp.int32), chains_BKG.shape)
    flat = (batch, chains * slots)
    tree = DraftTree(
        tokens_BN=jnp.where(new_BKG, chains_BKG, INVALID).astype(jnp.int32).reshape(flat),
        parents_BN=rows_BKH[:, :, :-1].reshape(flat),
        depths_BN=depths_BKG.reshape(flat),
    )
    return tree, rows_BKH
