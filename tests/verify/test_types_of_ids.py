"""Drafted ids may have any integer type: the verdict is that of int32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.verify import verify_block, verify_greedy, verify_point_mass, verify_token, verify_tree
from jaxspec.verify.chains import verify_chains

VOCABULARY = 256  # 0 in uint8 and in int8; an id of 255 is -1 there.
LAST = VOCABULARY - 1
TYPES = [np.int8, np.uint8, np.uint16, np.uint32]


def one_hot(*tokens):
    return jax.nn.one_hot(jnp.array(tokens), VOCABULARY)[None]


@pytest.mark.parametrize("rule", ["greedy", "token", "block", "point_mass"])
@pytest.mark.parametrize("kind", TYPES)
def test_blocks(rule, kind):
    key, draft, target = jax.random.key(0), np.array([[5, 100, 7]], kind), one_hot(5, 100, 9, LAST)
    verdict = {
        "greedy": lambda: verify_greedy(draft, target),
        "token": lambda: verify_token(key, draft, one_hot(5, 100, 7), target),
        "block": lambda: verify_block(key, draft, one_hot(5, 100, 7), target),
        "point_mass": lambda: verify_point_mass(key, draft, target),
    }[rule]()
    assert (verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()) == ([2], [9])


@pytest.mark.parametrize("kind", TYPES)
def test_a_bonus_token_may_be_the_last_id(kind):
    """No id is excluded after the last draft, and -1 stands for that."""
    draft = np.array([[5]], kind)
    verdict = verify_point_mass(jax.random.key(0), draft, one_hot(5, LAST))
    assert (verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()) == ([1], [LAST])


@pytest.mark.parametrize("kind", TYPES)
def test_chains(kind):
    drafts = np.array([[[5, 7], [100, 9]]], kind)
    target = jnp.stack([one_hot(100, 1, 1), one_hot(100, 9, LAST)], axis=1)
    draft_probs = jnp.full((1, 2, VOCABULARY), 1 / VOCABULARY)
    verdict = verify_chains(jax.random.key(0), drafts, draft_probs, target)
    assert (verdict.chain_B.tolist(), verdict.num_accepted_B.tolist()) == ([1], [2])
    assert verdict.next_token_B.tolist() == [LAST]


def test_trees():
    """255 is a token, not an empty node."""
    nodes, parents = np.array([[LAST, 3]], np.uint8), np.array([[0, 1]], np.uint8)
    verdict = verify_tree(jax.random.key(0), nodes, parents, one_hot(LAST, 3, 8), depth=2)
    assert (verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()) == ([2], [8])
