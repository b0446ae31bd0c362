"""The table of rejection rules, and the rule that chooses its chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.verify import verify_point_mass, verify_self_selection
from jaxspec.verify.rules import RULES, find_rule, rule_names

CHAINS, SLOTS, VOCABULARY = 3, 2, 5


def test_rules_by_what_they_judge():
    assert rule_names("block") == ("greedy", "point_mass", "token", "block")
    assert rule_names("tree", "chains")[:2] == ("tree", "recursive")
    assert [name for name, rule in RULES.items() if rule.fits(greedy=True)] == ["greedy", "tree"]
    assert not RULES["greedy"].fits(greedy=False)


def test_an_unknown_rule_names_the_closest():
    with pytest.raises(ValueError, match=r"greedy, .*: got 'tokn'\. Did you mean 'token'"):
        find_rule("tokn")
    with pytest.raises(ValueError, match=r"must be one of greedy, block: got 'k_seq'\.$"):
        find_rule("k_seq", among=("greedy", "block"))


jitted_selection = jax.jit(verify_self_selection)
jitted_point_mass = jax.jit(verify_point_mass)


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chains and, for each, the target's rows."""
    rng = np.random.default_rng(seed)
    drafts = rng.integers(0, VOCABULARY, (2, CHAINS, SLOTS))
    probs = rng.dirichlet(np.ones(VOCABULARY), (2, CHAINS, SLOTS + 1))
    return drafts, probs.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_self_selection_is_a_point_mass_of_the_best_chain(seed):
    drafts, probs = random_case(seed)
    key = jax.random.key(seed)
    verdict = jitted_selection(key, drafts, probs)
    best = []
    for row in range(2):
        lengths = [
            sum(
                np.prod([probs[row, chain, i, drafts[row, chain, i]] for i in range(count)])
                for count in range(1, SLOTS + 1)
            )
            for chain in range(CHAINS)
        ]
        best.append(int(np.argmax(lengths)))
    assert verdict.chain_B.tolist() == best
    rows = np.arange(2)
    expected = jitted_point_mass(key, drafts[rows, best], probs[rows, best])
    assert verdict.num_accepted_B.tolist() == expected.num_accepted_B.tolist()
    assert verdict.next_token_B.tolist() == expected.next_token_B.tolist()


def test_self_selection_fails_where_the_target_has_no_distribution():
    drafts, probs = random_case(0)
    probs[1] = np.nan
    verdict = jitted_selection(jax.random.key(0), drafts, probs)
    assert verdict.failed_B.tolist() == [False, True]
    assert int(verdict.chain_B[1]) == int(verdict.next_token_B[1]) == -1


@pytest.mark.parametrize(
    ("drafts", "probs", "message"),
    [
        ((2, 3), (2, 3, 2, 4), "drafts_BAG must hold integer token ids"),
        ((2, 0, 1), (2, 0, 2, 4), "of at least one chain"),
        ((2, 3, 1), (2, 1, 2, 4), r"floats \[2, 3, 2, V\]: got float32 \(2, 1, 2, 4\)"),
        ((2, 3, 1), (2, 3, 1, 4), r"floats \[2, 3, 2, V\]: got float32 \(2, 3, 1, 4\)"),
    ],
)
def test_self_selection_refuses_shapes_that_do_not_fit(drafts, probs, message):
    """Rows of one chain for three would have judged the third one by the first one's rows."""
    with pytest.raises(ValueError, match=message):
        verify_self_selection(jax.random.key(0), jnp.zeros(drafts, int), jnp.full(probs, 0.25))
