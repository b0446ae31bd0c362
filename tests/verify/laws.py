"""Distributions over short token sequences: trees, exact laws of shipped rules, chi-square.

A tree holds a distribution over the next token for every prefix. The law of n tokens is an array of
n axes of size V. Everything is numpy float64; the rules' laws are computed by the shipped functions
in float64.

Dimension key: O rounds, B batch rows (one draft each), G drafted slots, H = G + 1 verified rows,
V vocabulary, J candidates (patterns of coins).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxspec.verify.law import Law

FALSE_ALARM = 1e-9
ROUNDS = 20_000

# draft_BG, draft_probs_BGV, target_probs_BHV -> Law
MakeLaw = Callable[[jax.Array, jax.Array, jax.Array], Law]


@dataclasses.dataclass(frozen=True)
class Tree:
    """``rows[g]`` has shape [V] * g + [V]: the distribution of token g after each prefix."""

    rows: tuple[np.ndarray, ...]

    @property
    def vocabulary(self) -> int:
        return self.rows[0].shape[-1]

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Tree:
        """The tree with `change` applied to every row, renormalised."""
        changed = [change(rows) for rows in self.rows]
        return Tree(tuple(rows / rows.sum(-1, keepdims=True) for rows in changed))

    def along(self, tokens_BG: np.ndarray, *, count: int) -> np.ndarray:
        """The first `count` distributions met along each sequence, [B, count, V]."""
        rows = []
        for g in range(count):
            met = self.rows[g][tuple(tokens_BG[:, :g].T)]
            rows.append(np.broadcast_to(met, (len(tokens_BG), self.vocabulary)))
        return np.stack(rows, axis=1) if rows else np.zeros((len(tokens_BG), 0, self.vocabulary))

    def continuation(self, start: int, stop: int) -> np.ndarray:
        """P(tokens start..stop-1 | tokens before), with `stop` axes."""
        law = np.ones((self.vocabulary,) * stop)
        for g in range(start, stop):
            law = law * self.rows[g].reshape(self.rows[g].shape + (1,) * (stop - g - 1))
        return law

    def law(self, length: int) -> np.ndarray:
        """What sampling token by token gives: `length` axes."""
        return self.continuation(0, length)

    def sample(self, rng: np.random.Generator, prefix_OG: np.ndarray, *, length: int) -> np.ndarray:
        """Continues each prefix token by token, [O, length]; -1 ends a prefix early."""
        tokens = np.full((len(prefix_OG), length), -1)
        tokens[:, : prefix_OG.shape[1]] = prefix_OG
        for g in range(length):
            probs_OV = self.along(tokens[:, :g], count=g + 1)[:, g]
            uniform_O1 = rng.random((len(tokens), 1))
            drawn_O = (uniform_O1 >= probs_OV.cumsum(axis=1)[:, :-1]).sum(axis=1)
            tokens[:, g] = np.where(tokens[:, g] < 0, drawn_O, tokens[:, g])
        return tokens


def random_tree(
    rng: np.random.Generator,
    *,
    vocabulary: int,
    depth: int,
    factorised: bool = False,
    concentration: float = 0.7,
) -> Tree:
    """Dirichlet rows; `factorised`: one row per slot, whatever the prefix (a block drafter's)."""
    rows = []
    for g in range(depth):
        prefixes = () if factorised else (vocabulary,) * g
        drawn = rng.dirichlet(np.full(vocabulary, concentration), size=prefixes)
        rows.append(np.broadcast_to(drawn, (vocabulary,) * (g + 1)).copy())
    return Tree(tuple(rows))


def all_sequences(vocabulary: int, length: int) -> np.ndarray:
    """Every sequence, int32 [V ** length, length], in the order of a law's cells."""
    cells = list(itertools.product(range(vocabulary), repeat=length))
    return np.array(cells, np.int32).reshape(len(cells), length)


@functools.partial(jax.jit, static_argnames="make_law")
def _enumerated(
    draft_BG: jax.Array,
    draft_probs_BGV: jax.Array,
    target_probs_BHV: jax.Array,
    coins_JG: jax.Array,
    *,
    make_law: MakeLaw,
) -> tuple[jax.Array, ...]:
    law = make_law(draft_BG, draft_probs_BGV, target_probs_BHV)
    batch, slots = draft_BG.shape
    weights_HBV = jnp.stack(
        [law.next_weights(jnp.full((batch,), n, jnp.int32)) for n in range(slots + 1)]
    )
    return law.heads_BG, law.count(coins_JG), weights_HBV, law.valid_B


def output_law(
    make_law: MakeLaw,
    *,
    target: Tree,
    draft: Tree,
    drafts_BG: np.ndarray,
    weights_B: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The exact law of the first G + 1 tokens of speculative decoding, and of the accepted length.

    Args:
      make_law: a rule's `Law`, for example `jaxspec.verify.token.token_law`.
      target: p, at least G + 1 deep.
      draft: the q that is handed to the rule, at least G deep.
      drafts_BG: drafted blocks.
      weights_B: how likely each of them is: ``draft.law(G).ravel()`` for an honest q.

    Returns:
      The law of the tokens (G + 1 axes; what a round leaves open is sampled from the target), and
      P(num_accepted) [H].
    """
    slots = drafts_BG.shape[1]
    length, vocabulary = slots + 1, target.vocabulary
    coins_JG = np.array(list(itertools.product([False, True], repeat=slots))).reshape(-1, slots)
    with jax.enable_x64(True):
        heads_BG, count_J, weights_HBV, valid_B = jax.tree.map(
            np.asarray,
            _enumerated(
                jnp.asarray(drafts_BG),
                jnp.asarray(draft.along(drafts_BG, count=slots)),
                jnp.asarray(target.along(drafts_BG, count=length)),
                jnp.asarray(coins_JG),
                make_law=make_law,
            ),
        )
    assert heads_BG.dtype == np.float64
    assert valid_B.all()
    pattern_BJ = np.where(coins_JG, heads_BG[:, None], 1 - heads_BG[:, None]).prod(axis=2)
    law = np.zeros((vocabulary,) * length)
    accepted_H = np.zeros(length)
    for n in range(length):
        reached_B = weights_B * pattern_BJ[:, count_J == n].sum(axis=1)
        accepted_H[n] = reached_B.sum()
        total_B1 = weights_HBV[n].sum(axis=1, keepdims=True)
        assert (total_B1[:, 0] > 0)[reached_B > 0].all()
        next_BV = weights_HBV[n] / np.where(total_B1 > 0, total_B1, 1)
        prefix_B = np.ravel_multi_index(tuple(drafts_BG[:, :n].T), (vocabulary,) * n) if n else 0
        first = np.zeros((vocabulary**n, vocabulary))
        np.add.at(first, np.broadcast_to(prefix_B, reached_B.shape), reached_B[:, None] * next_BV)
        rest = target.continuation(n + 1, length)
        law += first.reshape((vocabulary,) * (n + 1) + (1,) * (length - n - 1)) * rest
    return law, accepted_H


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    return float(0.5 * np.abs(first - second).sum())


def chi_square(counts: np.ndarray, law: np.ndarray) -> float:
    """Pearson's test: the p-value of counts under a law of the same shape.

    A count where the law is 0 gives p = 0. Cells that expect fewer than 5 are merged.
    """
    counts, law = counts.ravel(), law.ravel() / law.sum()
    if counts[law == 0].any():
        return 0.0
    expected = law * counts.sum()
    order = np.argsort(expected)[np.sort(law) > 0]
    expected, counts = expected[order], counts[order].astype(float)
    merged = int((expected < 5).sum())
    while 0 < merged < len(expected) and expected[:merged].sum() < 5:
        merged += 1
    if merged > 1:
        expected = np.concatenate([[expected[:merged].sum()], expected[merged:]])
        counts = np.concatenate([[counts[:merged].sum()], counts[merged:]])
    if len(expected) < 2:
        return 1.0
    return float(scipy.stats.chisquare(counts, expected).pvalue)


def histogram(tokens_OG: np.ndarray, *, vocabulary: int) -> np.ndarray:
    """How often each sequence occurred, with as many axes as columns."""
    counts = np.zeros((vocabulary,) * tokens_OG.shape[1], int)
    np.add.at(counts, tuple(tokens_OG.T), 1)
    return counts


def p_values(tokens_OH: np.ndarray, law: np.ndarray) -> dict[str, float]:
    """Chi-square of each position's marginal, of the first two tokens and of all of them."""
    counts = histogram(tokens_OH, vocabulary=law.shape[0])
    axes = range(law.ndim)
    found = {}
    for axis in axes:
        others = tuple(other for other in axes if other != axis)
        found[f"position {axis}"] = chi_square(counts.sum(others), law.sum(others))
    others = tuple(axis for axis in axes if axis > 1)
    found["first two"] = chi_square(counts.sum(others), law.sum(others))
    found["all"] = chi_square(counts, law)
    return found


def assert_same_law(tokens_OH: np.ndarray, law: np.ndarray) -> None:
    """Fails if any of the tests says so; a true law fails each test once in 1e9."""
    found = p_values(tokens_OH, law)
    assert min(found.values()) > FALSE_ALARM, found


def assert_different_law(tokens_OH: np.ndarray, law: np.ndarray) -> None:
    """The negative control: the same tests must refuse these tokens."""
    found = p_values(tokens_OH, law)
    assert min(found.values()) < FALSE_ALARM, found
