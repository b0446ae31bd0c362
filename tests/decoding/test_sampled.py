"""Above temperature 0 the jitted loops have the target's law, and wrong ones are noticed.

Dimension key: R rows (one response each), V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.decoding import Autoregressive, DecodeRules, Speculative, generate
from jaxspec.decoding.state import Prompts
from jaxspec.drafters.protocol import DFlashProposer, Draft
from jaxspec.ops.sampling import Sampling
from tests.decoding import tiny
from tests.verify import laws

VOCABULARY = 5
ROWS = 20_000
TOKENS = 3
PROMPT = (1, 3, 2)
TEMPERATURE = Sampling(1.0)
RULES = DecodeRules(TOKENS)
ARCHITECTURE = TransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=8,
    tie_embeddings=False,
    max_position_embeddings=64,
)


@dataclasses.dataclass(frozen=True)
class WrongProbabilities(DFlashProposer):
    """Draws from one distribution and states another: the commonest mistake."""

    def propose(self, params, state, anchor_B, keys_B):
        draft = super().propose(params, state, anchor_B, keys_B)
        flatter = jnp.sqrt(draft.probs_BGV)
        return Draft(draft.tokens_BG, flatter / flatter.sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def target():
    return tiny.target(ARCHITECTURE, spread=30.0)


@pytest.fixture(scope="module")
def law(target):
    """P(three tokens) by the target alone, from its logits on every text: three axes."""
    model, params = target

    @jax.jit
    def probabilities(texts):
        hidden = model.apply({"params": params}, texts).hidden_BSD[:, -1]
        return TEMPERATURE.probabilities(model.apply({"params": params}, hidden, method="logits"))

    found = np.ones((VOCABULARY,) * TOKENS)
    for count in range(TOKENS):
        texts = laws.all_sequences(VOCABULARY, count)
        prefix = np.broadcast_to(PROMPT, (len(texts), len(PROMPT)))
        rows = np.array(probabilities(np.concatenate([prefix, texts], axis=1).astype(np.int32)))
        shape = (VOCABULARY,) * (count + 1) + (1,) * (TOKENS - count - 1)
        found = found * rows.astype(np.float64).reshape(shape)
    return found


def decode(strategy, params, *, seed):
    """Three tokens of many rows with one prompt and keys of their own, [R, 3]."""
    prompts = Prompts(
        tokens_BS=jnp.broadcast_to(jnp.array(PROMPT, jnp.int32), (ROWS, len(PROMPT))),
        lengths_B=jnp.full(ROWS, len(PROMPT), jnp.int32),
        active_B=jnp.ones(ROWS, bool),
        keys_B=jax.random.split(jax.random.key(seed), ROWS),
    )
    state = strategy.start(params, prompts, capacity=16)
    state = strategy.run(params, state, prompts.keys_B)
    assert not state.failed_B.any()
    return state


def tokens_of(state):
    return np.array(state.tokens_BT[:, :TOKENS])


def speculative(target, verifier, *, kind=DFlashProposer):
    model, params = target
    base, drafter_params = tiny.dflash(model)
    proposer = kind(
        model,
        base.drafter,
        block_size=3,
        sampling=TEMPERATURE if verifier == "token" else Sampling(0.0),
    )
    # A drafter that is far from the target, and far from uniform.
    both = {"target": params, "drafter": tiny.scaled(drafter_params, 2.0)}
    return Speculative(model, proposer, RULES, verifier, TEMPERATURE), both


def test_the_law_is_worth_testing(law):
    assert np.isclose(law.sum(), 1, atol=1e-6)
    first = law.sum(axis=(1, 2))
    assert 0.2 < first.max() < 0.9
    # The later tokens depend on the earlier ones.
    conditional = law.sum(axis=2) / first[:, None]
    assert np.abs(conditional - conditional.mean(axis=0)).max() > 0.05


def test_autoregressive_has_the_targets_law(target, law):
    model, params = target
    tokens = tokens_of(decode(Autoregressive(model, RULES, TEMPERATURE), params, seed=0))
    laws.assert_same_law(tokens, law)


@pytest.mark.parametrize("verifier", ["token", "point_mass"])
def test_speculative_has_the_targets_law(target, law, verifier):
    strategy, params = speculative(target, verifier)
    state = decode(strategy, params, seed=1)
    tokens = tokens_of(state)
    laws.assert_same_law(tokens, law)
    # Rejections, partial and full acceptance all happened.
    first_round = np.array(state.verified_BR[:, 0])
    assert set(first_round.tolist()) == {0, 1, 2}
    # The test has the power to tell: the same counts under a law that is a little flatter.
    laws.assert_different_law(tokens, law**0.9 / (law**0.9).sum())


def test_control_wrong_draft_probabilities_are_noticed(target, law):
    strategy, params = speculative(target, "token", kind=WrongProbabilities)
    laws.assert_different_law(tokens_of(decode(strategy, params, seed=2)), law)


def test_control_greedy_rows_are_noticed(target, law):
    model, params = target
    greedy = Autoregressive(model, RULES)
    laws.assert_different_law(tokens_of(decode(greedy, params, seed=3)), law)


def test_samples_belong_to_the_prompt_and_the_seed():
    """Neighbours, order and batch size change nothing; the seed and the name do."""
    model, params = tiny.target(spread=3.0)
    proposer, drafter_params = tiny.dflash(model, sampling=TEMPERATURE)
    both = {"target": params, "drafter": drafter_params}
    strategy = Speculative(model, proposer, tiny.RULES, "token", TEMPERATURE)
    prompts, ids = tiny.PROMPTS[:3], tiny.IDS[:3]
    whole = generate(strategy, both, prompts, ids=ids, batch_size=4, seed=5)
    turned = generate(strategy, both, prompts[::-1], ids=ids[::-1], batch_size=4, seed=5)
    assert turned[::-1] == whole
    alone = generate(strategy, both, prompts[1:2], ids=ids[1:2], batch_size=4, seed=5)
    assert alone[0] == whole[1]
    other = generate(strategy, both, prompts, ids=ids, batch_size=4, seed=6)
    assert all(mine.tokens != theirs.tokens for mine, theirs in zip(whole, other, strict=True))
    renamed = generate(strategy, both, prompts[1:2], ids=["other"], batch_size=4, seed=5)
    assert renamed[0].tokens != whole[1].tokens
