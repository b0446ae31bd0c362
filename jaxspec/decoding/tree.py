"""Speculative decoding with a tree of drafts, from the marginals of one block.

The drafter's pass gives a distribution for each slot. From these a tree is made, either of the
likeliest prefixes (`TreeSpeculative`) or of several sampled chains (`ChainSpeculative`), and the
target reads it in one pass with tree attention. Prompt look-up has no distributions: its tree is
made of several continuations. Verification accepts one path, whose keys and
values are then appended to the caches as those of a chain would be.

Dimension key: B batch rows, G drafted slots, K = G + 1 block slots (the tokens of a path), X nodes,
Y = X + 1 rows of the target's pass (the anchor first), A sampled chains, H = G + 1 verified rows of
a chain, J candidates for the chains' first tokens, V vocabulary.

>>> strategy = TreeSpeculative(model, proposer, rules, "tree", num_nodes=32)  # doctest: +SKIP
>>> strategy = ChainSpeculative(  # doctest: +SKIP
...     model, proposer, rules, "recursive", sampling, num_chains=4)
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxspec.decoding.speculative import Choice, Plan, Speculative
from jaxspec.decoding.state import DecodeState
from jaxspec.drafters.protocol import ChainProposer, MarginalProposer
from jaxspec.drafters.tree import DraftTree, best_first_tree, chain_tree, largest
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import INVALID, largest_index
from jaxspec.verify import TreeVerdict, Verdict
from jaxspec.verify.rules import RULES, rule_names

CHAIN_RULES = rule_names("tree", "chains")
"""Verifiers of several sampled chains."""


@dataclasses.dataclass(frozen=True)
class TreeSpeculative(Speculative):
    """Drafts the best-first tree and verifies it, at any temperature.

    Of a proposer of chains, the tree is as many whole continuations as fit.

    Raises:
      ValueError: a proposer with neither marginals nor chains, or a tree of no nodes.
    """

    verifier: str = "tree"
    num_nodes: int = 32
    """The budget: drafted tokens that one target pass reads."""

    def __post_init__(self) -> None:
        if isinstance(self.proposer, ChainProposer):
            object.__setattr__(self, "num_nodes", self._whole_chains(self.proposer))
        else:
            check_marginals(self.proposer)
        names = rule_names("tree")
        if self.verifier not in names:
            expected = " or ".join(map(repr, names))
            raise ValueError(f"A tree is verified by {expected}: got {self.verifier!r}.")
        if self.num_nodes < 1:
            raise ValueError(f"A draft tree has at least 1 node: got {self.num_nodes}.")

    @property
    def verified_rows(self) -> int:
        """The anchor and the nodes."""
        return self.num_nodes + 1

    def _whole_chains(self, proposer: ChainProposer) -> int:
        """The nodes of as many continuations as the budget has room for."""
        slots = proposer.block_size - 1
        if not 1 <= slots <= self.num_nodes:
            raise ValueError(
                f"A tree of {self.num_nodes} nodes has no room for a continuation of {slots} "
                "tokens: give more nodes, or a block of at least 2 and at most one more than nodes."
            )
        return self.num_nodes - self.num_nodes % slots

    def draft(self, params: Any, state: DecodeState, keys_B: jax.Array) -> Plan:
        """The best-first tree of the marginals, or the tree of the chains; it needs no keys."""
        del keys_B
        if isinstance(self.proposer, ChainProposer):
            number = self.num_nodes // (self.proposer.block_size - 1)
            chains_BAG = self.proposer.chains(
                params, state.drafter, state.anchor_B, num_chains=number
            )
            tree, _ = chain_tree(chains_BAG)
            return self._plan(state, tree, tree, passes=0)
        proposer = cast(MarginalProposer, self.proposer)
        logits_BGV = proposer.marginal_logits(params, state.drafter, state.anchor_B)
        log_probs_BGV = jax.nn.log_softmax(logits_BGV, axis=-1)
        tree = best_first_tree(log_probs_BGV, num_nodes=self.num_nodes)
        # One NaN among a slot's logits makes all of its log-probabilities NaN.
        failed_B1 = jnp.isnan(log_probs_BGV[..., 0]).any(axis=1, keepdims=True)
        tokens_BX = jnp.where(failed_B1, INVALID, tree.tokens_BX)
        tree = dataclasses.replace(tree, tokens_BX=tokens_BX)
        return self._plan(state, tree, tree, passes=proposer.marginal_passes)

    def _plan(self, state: DecodeState, tree: DraftTree, detail: Any, *, passes: int) -> Plan:
        return Plan(
            rows_BY=jnp.concatenate([state.anchor_B[:, None], tree.tokens_BX], axis=1),
            drafter=state.drafter,
            detail=detail,
            depths_BY=jnp.pad(tree.depths_BX, ((0, 0), (1, 0))),
            mask_BYY=tree.ancestors_BYY(depth=self.round_tokens - 1),
            passes_B=jnp.full_like(state.anchor_B, passes),
        )

    def verify(self, keys_B: jax.Array, plan: Plan, logits_BYV: jax.Array) -> Choice:
        """The path that the target's own tokens take through the tree."""
        return self._walk(keys_B, plan.detail, logits_BYV)

    def _walk(self, keys_B: jax.Array, tree: DraftTree, logits_BYV: jax.Array) -> Choice:
        def draw(step: jax.Array, logits_BV: jax.Array) -> jax.Array:
            if self.sampling.greedy:
                return largest_index(logits_BV)
            # A key for each row, and a distribution only for the rows that the walk comes by.
            step_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_B)
            probs_BV = self.sampling.probabilities(logits_BV)
            return jax.vmap(self.sampling.sample)(step_keys_B, probs_BV)

        depth = self.round_tokens - 1
        walk = RULES[self.verifier].function
        found = walk(tree.tokens_BX, tree.parents_BX, logits_BYV, draw=draw, depth=depth)
        # Nodes are empty where chains share a prefix, but those of the first chain hold a token,
        # and so do all of a best-first tree, unless the drafter gave NaN.
        failed_B = (tree.tokens_BX[:, :depth] == INVALID).any(axis=1)
        return _choice(
            dataclasses.replace(
                found,
                num_accepted_B=jnp.where(failed_B, INVALID, found.num_accepted_B),
                next_token_B=jnp.where(failed_B, INVALID, found.next_token_B),
            )
        )


@array_dataclass
class Chains:
    """Sampled chains, and what they were sampled from."""

    tree: DraftTree
    tokens_BAG: jax.Array
    probs_BGV: jax.Array
    rows_BAH: jax.Array
    """The rows of the target's pass that belong to each chain."""


@dataclasses.dataclass(frozen=True)
class ChainSpeculative(TreeSpeculative):
    """Samples several chains from the marginals and emits the longest accepted one, exactly.

    The verifier is one of `CHAIN_RULES`, which `jaxspec.verify.rules` describes. "tree" walks by
    the target's own draws, as for any tree, and is the only one at temperature 0.
    `num_nodes` follows from the chains.

    Raises:
      ValueError: an unknown verifier, no chains, drafts at temperature 0 (all chains would be one).
    """

    verifier: str = "recursive"
    num_nodes: int = 0
    num_chains: int = 4

    def __post_init__(self) -> None:
        check_marginals(self.proposer)
        if self.verifier not in CHAIN_RULES:
            raise ValueError(
                f"Chains are verified by one of {', '.join(CHAIN_RULES)}: got {self.verifier!r}."
            )
        if not RULES[self.verifier].fits(greedy=self.sampling.greedy):
            raise ValueError(
                f"Verifier {self.verifier!r} is for temperatures above 0; at temperature 0 chains "
                "are verified by 'tree'."
            )
        if self.proposer.sampling.greedy:
            raise ValueError(
                "Chains are sampled: give the drafts a temperature above 0 (at 0 all of them are "
                "the same chain)."
            )
        if self.num_chains < 1:
            raise ValueError(f"num_chains must be at least 1: got {self.num_chains}.")
        nodes = self.num_chains * (self.proposer.block_size - 1)
        if self.num_nodes not in (0, nodes):
            raise ValueError(f"num_nodes follows from the chains: leave it out ({nodes}).")
        object.__setattr__(self, "num_nodes", nodes)

    def draft(self, params: Any, state: DecodeState, keys_B: jax.Array) -> Plan:
        """Chains from the marginals; a prefix that several share is in the tree once."""
        proposer = cast(MarginalProposer, self.proposer)
        logits_BGV = proposer.marginal_logits(params, state.drafter, state.anchor_B)
        probs_BGV = proposer.sampling.probabilities(logits_BGV)
        chains_BAG = jax.vmap(self._sample)(keys_B, probs_BGV)
        tree, rows_BAH = chain_tree(chains_BAG)
        detail = Chains(tree, chains_BAG, probs_BGV, rows_BAH)
        return self._plan(state, tree, detail, passes=proposer.marginal_passes)

    def verify(self, keys_B: jax.Array, plan: Plan, logits_BYV: jax.Array) -> Choice:
        """By the rule, or by a walk as in any tree."""
        chains: Chains = plan.detail
        if RULES[self.verifier].drafts == "tree":
            return self._walk(keys_B, chains.tree, logits_BYV)
        target_BYV = self.sampling.probabilities(logits_BYV)
        return _choice(
            jax.vmap(self._judge)(
                keys_B, chains.tokens_BAG, chains.probs_BGV, target_BYV, chains.rows_BAH
            )
        )

    def _sample(self, key: jax.Array, probs_GV: jax.Array) -> jax.Array:
        """One row's chains [A, G]."""
        slots, vocabulary = probs_GV.shape
        key_rest, key_first = jax.random.split(key)
        shape = (self.num_chains, slots, vocabulary)
        chains_AG = self.proposer.sampling.sample(key_rest, jnp.broadcast_to(probs_GV, shape))
        if not RULES[self.verifier].first_differ:
            return chains_AG
        # The largest of log q + Gumbel noise are draws without replacement, in order. Where q has
        # fewer tokens than there are chains, the rest repeat the first token: as a first token it
        # cannot be accepted again, and where it was accepted, they offer tokens to follow it.
        noise_V = jax.random.gumbel(key_first, (vocabulary,), probs_GV.dtype, mode="high")
        count = min(self.num_chains, vocabulary)
        score_J, first_J = largest(jnp.log(probs_GV[0]) + noise_V, count)
        first_J = jnp.where(score_J > -jnp.inf, first_J, first_J[0])
        first_A = jnp.pad(first_J, (0, self.num_chains - count), mode="wrap")
        return chains_AG.at[:, 0].set(first_A.astype(chains_AG.dtype))

    def _judge(
        self,
        key: jax.Array,
        chains_AG: jax.Array,
        probs_GV: jax.Array,
        target_YV: jax.Array,
        rows_AH: jax.Array,
    ) -> TreeVerdict:
        """One row's verdict, with the accepted chain's rows as the path."""
        verdict = RULES[self.verifier].judge(
            key, chains_AG[None], probs_GV[None], target_YV[rows_AH][None]
        )
        num_accepted, chain = verdict.num_accepted_B[0], jnp.maximum(verdict.chain_B[0], 0)
        path_G = rows_AH[chain, 1:]
        path_G = jnp.where(jnp.arange(path_G.shape[0]) < num_accepted, path_G, 0)
        return TreeVerdict(num_accepted, path_G, verdict.next_token_B[0])


def check_marginals(proposer: object) -> None:
    """Raises ValueError unless the proposer gives the marginals of a block."""
    if not isinstance(proposer, MarginalProposer):
        raise ValueError(
            "A draft tree is made from a block's marginals, which only a block drafter has, or "
            f"from the continuations of prompt look-up: got {type(proposer).__name__}."
        )


def _choice(walk: TreeVerdict) -> Choice:
    """The accepted path as a chain after the anchor; what follows it is padding."""
    path_BK = jnp.pad(walk.path_BG, ((0, 0), (1, 0)))
    return Choice(Verdict(walk.num_accepted_B, walk.next_token_B), path_BK)
