"""Speculative decoding with a tree of drafts, from the marginals of one block.

The drafter's pass gives a distribution for each slot; the likeliest prefixes under their product
make a tree, which the target reads in one pass with tree attention. A walk by tokens drawn from
the target decides which path stands. The kept rows are then put behind the caches as in a chain.

Dimension key: B batch rows, G drafted slots, K = G + 1, N nodes, R = N + 1 rows of the target's
pass, L layers, V vocabulary.

>>> strategy = TreeSpeculative(model, proposer, rules, "tree", num_nodes=32)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.decoding.speculative import Speculative
from jaxspec.decoding.state import DecodeState, stream_keys
from jaxspec.drafters.protocol import MarginalProposer
from jaxspec.drafters.tree import DraftTree, best_first_tree
from jaxspec.models.transformer import TransformerOutput
from jaxspec.ops.sampling import INVALID, has_finite_maximum
from jaxspec.verify import TreeVerdict, Verdict, verify_tree
from jaxspec.verify.tree import walk_tree


@dataclasses.dataclass(frozen=True)
class TreeSpeculative(Speculative):
    """Draft a tree and verify it, at any temperature.

    Raises:
      ValueError: a proposer without marginals, or a tree of no nodes.
    """

    verifier: str = "tree"
    num_nodes: int = 32
    """The budget: drafted tokens that one target pass reads."""

    def __post_init__(self) -> None:
        if not isinstance(self.proposer, MarginalProposer):
            raise ValueError(
                "A draft tree is made of a block's marginals, which only a block drafter has: got "
                f"{type(self.proposer).__name__}."
            )
        if self.verifier != "tree":
            raise ValueError(f"A tree is verified by 'tree': got {self.verifier!r}.")
        if self.num_nodes < 1:
            raise ValueError(f"A draft tree has at least 1 node: got {self.num_nodes}.")

    @property
    def verified_rows(self) -> int:
        """The anchor and the nodes."""
        return self.num_nodes + 1

    def _round(self, params: Any, state: DecodeState) -> DecodeState:
        assert isinstance(self.proposer, MarginalProposer)
        depth = self.proposer.block_size - 1
        (verify_keys_B,) = stream_keys(state.keys_B, state.rounds_B + 1, "verify")
        logits_BGV = self.proposer.marginal_logits(params, state.drafter, state.anchor_B)
        tree = best_first_tree(jax.nn.log_softmax(logits_BGV, axis=-1), num_nodes=self.num_nodes)
        rows_BR = jnp.concatenate([state.anchor_B[:, None], tree.tokens_BN], axis=1)
        depths_BR = jnp.pad(tree.depths_BN, ((0, 0), (1, 0)))
        output, logits_BRV = self.target_pass(
            params,
            rows_BR,
            state.cache,
            positions_BS=state.cache.lengths_B[:, None] + depths_BR,
            mask_BSS=tree.ancestors_BRR(depth=depth),
        )
        walk = self._walk(verify_keys_B, tree, logits_BRV, depth=depth)

        # The accepted path as a chain behind the anchor; what follows it is filling.
        path_BK = jnp.pad(walk.path_BD, ((0, 0), (1, 0)))
        return self._finish(
            params,
            state,
            Verdict(walk.num_accepted_B, walk.next_token_B),
            jnp.take_along_axis(rows_BR, path_BK, axis=1),
            _rows_of(output, path_BK),
            ranks_BG=walk.path_BD - 1,
        )

    def _walk(
        self, keys_B: jax.Array, tree: DraftTree, logits_BRV: jax.Array, *, depth: int
    ) -> TreeVerdict:
        if self.sampling.greedy:
            return walk_tree(
                tree.tokens_BN, tree.parents_BN, logits_BRV, draw=_largest, depth=depth
            )
        probs_BRV = self.sampling.probabilities(logits_BRV)
        # A key for each row: the rule takes one for the batch.
        walk = jax.vmap(
            lambda key, tokens, parents, p: verify_tree(
                key, tokens[None], parents[None], p[None], depth=depth
            )
        )(keys_B, tree.tokens_BN, tree.parents_BN, probs_BRV)
        return jax.tree.map(lambda leaf: leaf[:, 0], walk)


def _largest(step: int, logits_BV: jax.Array) -> jax.Array:
    """The draw of temperature 0, without a distribution."""
    del step
    return jnp.where(has_finite_maximum(logits_BV), logits_BV.argmax(axis=-1), INVALID)


def _rows_of(output: TransformerOutput, path_BK: jax.Array) -> TransformerOutput:
    """The rows of a pass that lie on a path, in its order."""

    def of_tokens(array_BSD: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array_BSD, path_BK[..., None], axis=1)

    def of_cache(array_LBRSC: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array_LBRSC, path_BK[None, :, None, :, None], axis=3)

    return TransformerOutput(
        of_tokens(output.hidden_BSD),
        None if output.features_BSE is None else of_tokens(output.features_BSE),
        of_cache(output.keys_LBRSC),
        of_cache(output.values_LBRSC),
    )
