"""Masked-diffusion drafters in the engine: outputs are the target's, whatever the drafter says.

Dimension key: B rows (one response each), V vocabulary.
"""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import DiTConfig
from jaxspec.decoding import ChainSpeculative, Speculative, TreeSpeculative
from jaxspec.drafters.denoiser import CachedDenoiserProposer, DenoiserProposer
from jaxspec.models.denoiser import DenoiserOutput
from tests.decoding import test_sampled as sampled
from tests.decoding import tiny
from tests.decoding.test_sampled import law, target  # noqa: F401  (fixtures)
from tests.denoisers import random_denoiser
from tests.verify import laws


def denoiser(vocabulary, context):
    """A random one; its mask is a row behind the target's vocabulary."""
    config = DiTConfig(
        vocab_size=vocabulary + 1,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        conditioning_size=4,
        max_position_embeddings=256,
        context=context,
    )
    return random_denoiser(config, spread=0.5)


def proposer(vocabulary, context="causal", **settings):
    model, params = denoiser(vocabulary, context)
    kind = CachedDenoiserProposer if context == "causal" else DenoiserProposer
    return kind(model, vocabulary, **settings), params


@pytest.mark.parametrize(
    ("context", "passes", "order"),
    [("causal", 1, "ancestral"), ("bidirectional", 3, "ancestral"), ("causal", 2, "first_hitting")],
)
def test_greedy_outputs_are_the_targets(context, passes, order):
    (plain, params), *_ = tiny.strategies()
    drafter, weights = proposer(
        tiny.VOCABULARY,
        context,
        block_size=tiny.BLOCK_SIZE,
        num_passes=passes,
        order=order,
        suppressed_ids=tiny.RULES.suppressed_ids,
    )
    strategy = Speculative(plain.model, drafter, tiny.RULES)
    responses = tiny.decode(strategy, {"target": params, "drafter": weights})
    assert [r.tokens for r in responses] == [r.tokens for r in tiny.decode(plain, params)]
    own = context == "causal"
    for response in responses:
        rounds = len(response.emitted)
        assert rounds * (1 + own) <= response.draft_passes <= rounds * (passes + own)
    assert sum(r.draft_passes for r in responses) > 0


def test_a_greedy_tree_of_its_marginals_is_exact():
    (plain, params), *_ = tiny.strategies()
    drafter, weights = proposer(tiny.VOCABULARY, block_size=tiny.BLOCK_SIZE)
    strategy = TreeSpeculative(plain.model, drafter, tiny.RULES, num_nodes=12)
    responses = tiny.decode(strategy, {"target": params, "drafter": weights})
    assert [r.tokens for r in responses] == [r.tokens for r in tiny.decode(plain, params)]
    # One pass drafts, one takes in what was kept.
    assert all(r.draft_passes == 2 * len(r.emitted) for r in responses)


ECHO_CONFIG = DiTConfig(vocab_size=sampled.VOCABULARY + 1, max_position_embeddings=16)


@dataclasses.dataclass(frozen=True)
class Echo:
    """A denoiser of two slots that repeats the slot that is revealed, and guesses while none is."""

    config: DiTConfig = ECHO_CONFIG

    def apply(self, variables, tokens, *, mask_BSS, sigma, rows_BI):
        del variables, mask_BSS, sigma
        slots_BG = jnp.take_along_axis(tokens, rows_BI, axis=1)
        # The mask's own entry is suppressed: two masked slots are uniform.
        logits_BGV = 3.0 * jax.nn.one_hot(slots_BG[:, ::-1], self.config.vocab_size)
        return DenoiserOutput(tokens, logits_BGV, tokens, tokens)


def strategy_of(target, name, kind=DenoiserProposer):  # noqa: F811
    model, params = target
    rule, verifier = name.split(":")
    drafter = kind(
        Echo(),
        sampled.VOCABULARY,
        block_size=3,
        sampling=sampled.TEMPERATURE,
        num_passes=1 if rule == "chains" else 2,
        order="first_hitting",
        rule="in_order" if rule == "chains" else rule,
    )
    both = {"target": params, "drafter": params}
    if rule == "chains":
        rules = (sampled.RULES, verifier, sampled.TEMPERATURE)
        return ChainSpeculative(model, drafter, *rules, num_chains=2), both
    return Speculative(model, drafter, sampled.RULES, verifier, sampled.TEMPERATURE), both


OTHER_VERIFIER = pytest.mark.slow("these drafts with another verifier, and it with other drafts")


@pytest.mark.parametrize(
    "name",
    [
        "in_order:token",
        pytest.param("in_order:block", marks=OTHER_VERIFIER),
        "last_pass:token",
        pytest.param("chains:recursive", marks=OTHER_VERIFIER),
    ],
)
def test_sampled_outputs_have_the_targets_law(target, law, name):  # noqa: F811
    strategy, params = strategy_of(target, name)
    state = sampled.decode(strategy, params, sampled.keys(seed=11))
    tokens = sampled.tokens_of(state)
    laws.assert_same_law(tokens, law)
    assert set(np.array(state.verified_BO[:, 0]).tolist()) == {0, 1, 2}


class RevealTime(DenoiserProposer):
    """States what each token was drawn from, whatever was filled in before it to its right."""

    def propose(self, params, state, anchor_B, keys_B):
        own = "jaxspec.drafters.denoising.has_own_distribution"
        with mock.patch(own, lambda passes_BG, masked_BG, *, rule: masked_BG):
            return super().propose(params, state, anchor_B, keys_B)


def test_control_reveal_time_distributions_are_noticed(target, law):  # noqa: F811
    strategy, params = strategy_of(target, "in_order:token", RevealTime)
    tokens = sampled.tokens_of(sampled.decode(strategy, params, sampled.keys(seed=12)))
    laws.assert_different_law(tokens, law)
