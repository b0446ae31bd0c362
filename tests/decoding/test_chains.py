"""Several chains at temperature 0, and arguments; their laws are in test_sampled.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import ChainSpeculative
from jaxspec.ops.sampling import Sampling
from tests.decoding import tiny

WARM = Sampling(1.0)


def chains(verifier="tree", sampling=None, *, draft=WARM, **settings):
    model, params = tiny.target()
    proposer, drafter = tiny.dflash(model, suppressed_ids=tiny.RULES.suppressed_ids, sampling=draft)
    changes = {} if sampling is None else {"sampling": sampling}
    strategy = ChainSpeculative(model, proposer, tiny.RULES, verifier, **changes, **settings)
    return strategy, {"target": params, "drafter": drafter}


def test_greedy_output_is_the_targets():
    (plain, target), *_ = tiny.strategies()
    strategy, params = chains(num_chains=3)
    assert strategy.verified_rows == 1 + 3 * (tiny.BLOCK_SIZE - 1)
    expected = [response.tokens for response in tiny.decode(plain, target)]
    assert [response.tokens for response in tiny.decode(strategy, params)] == expected


def test_first_tokens_without_replacement_differ():
    strategy, _ = chains("recursive_without_replacement", WARM, num_chains=5)
    probs_GV = jnp.zeros((4, tiny.VOCABULARY)).at[:, :5].set(jnp.array([0.4, 0.3, 0.1, 0.1, 0.1]))
    sample = jax.jit(jax.vmap(strategy._sample, in_axes=(0, None)))
    chains_BAG = np.array(sample(jax.random.split(jax.random.key(0), 4000), probs_GV))
    assert (np.sort(chains_BAG[:, :, 0], axis=1) == np.arange(5)).all()
    # The first is drawn from q, the second from q without it.
    first = np.bincount(chains_BAG[:, 0, 0], minlength=5) / 4000
    np.testing.assert_allclose(first, probs_GV[0, :5], atol=0.04)
    second = chains_BAG[chains_BAG[:, 0, 0] == 0, 1, 0]
    assert abs((second == 1).mean() - 0.5) < 0.06
    # Fewer tokens than chains: the rest repeat the first.
    two_GV = jnp.zeros((4, tiny.VOCABULARY)).at[:, 7:9].set(0.5)
    few_BA = np.array(sample(jax.random.split(jax.random.key(1), 100), two_GV))[:, :, 0]
    assert (few_BA[:, :2].sum(axis=1) == 15).all()
    assert (few_BA[:, 2:] == few_BA[:, :1]).all()


def test_arguments_are_checked():
    for settings, message in (
        ({"verifier": "best"}, "verified by one of tree, recursive"),
        ({"verifier": "recursive"}, "'recursive' is for temperatures above 0"),
        ({"draft": Sampling(0.0)}, "give the drafts a temperature above 0"),
        ({"num_chains": 0}, "at least 1: got 0"),
        ({"num_nodes": 5}, "follows from the chains"),
    ):
        with pytest.raises(ValueError, match=message):
            chains(**settings)
    again = dataclasses.replace(chains()[0], num_chains=4)
    assert again == chains()[0]
