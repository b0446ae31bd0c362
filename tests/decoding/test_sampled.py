"""Above temperature 0 the jitted loops have the target's law, and wrong ones are noticed.

Dimension key: B rows (one response each), V vocabulary.
"""

import dataclasses
import importlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.decoding import (
    CHAIN_RULES,
    Autoregressive,
    ChainSpeculative,
    DecodeRules,
    Speculative,
    TreeSpeculative,
)
from jaxspec.decoding.generate import pad_prompts
from jaxspec.decoding.state import Prompts
from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.drafters.protocol import Draft
from jaxspec.ops.sampling import GREEDY, Sampling
from tests.decoding import tiny
from tests.verify import laws

generate_module = importlib.import_module("jaxspec.decoding.generate")

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
class Misstated(DFlashProposer):
    """States q ** power where it drew from q: right with 1, otherwise the commonest mistake."""

    def propose(self, params, state, anchor_B, keys_B):
        draft, state = super().propose(params, state, anchor_B, keys_B)
        if draft.probs_BGV is None:
            return draft, state
        stated = draft.probs_BGV ** params["power"]
        return Draft(draft.tokens_BG, stated / stated.sum(axis=-1, keepdims=True)), state


@pytest.fixture(scope="module")
def target():
    return tiny.target(ARCHITECTURE, spread=30.0)


@pytest.fixture(scope="module")
def law(target):
    """P(three tokens) by the target alone, from its logits on every text: three axes."""
    model, params = target

    @jax.jit
    def probabilities(texts, last):
        hidden = model.apply({"params": params}, texts).hidden_BSD[:, last]
        return TEMPERATURE.probabilities(model.apply({"params": params}, hidden, method="logits"))

    most = VOCABULARY ** (TOKENS - 1)
    length = len(PROMPT) + TOKENS - 1

    found = np.ones((VOCABULARY,) * TOKENS)
    for count in range(TOKENS):
        texts = laws.all_sequences(VOCABULARY, count)
        padded = np.zeros((most, length), np.int32)
        padded[:, : len(PROMPT)] = PROMPT
        padded[: len(texts), len(PROMPT) : len(PROMPT) + count] = texts
        rows = np.array(probabilities(padded, len(PROMPT) + count - 1))[: len(texts)]
        shape = (VOCABULARY,) * (count + 1) + (1,) * (TOKENS - count - 1)
        found = found * rows.astype(np.float64).reshape(shape)
    return found


def keys(*, seed):
    return jax.random.split(jax.random.key(seed), ROWS)


def decode(strategy, params, keys_B, *, active_B=None):
    """Three tokens of many rows with one prompt and keys of their own."""
    prompts = Prompts(
        tokens_BS=jnp.broadcast_to(jnp.array(PROMPT, jnp.int32), (ROWS, len(PROMPT))),
        lengths_B=jnp.full(ROWS, len(PROMPT), jnp.int32),
        active_B=jnp.ones(ROWS, bool) if active_B is None else active_B,
        keys_B=keys_B,
    )
    state = strategy.start(params, prompts, capacity=16)
    state = strategy.run(params, state)
    assert not state.failed_B.any()
    return state


def tokens_of(state):
    return np.array(state.tokens_BT[:, :TOKENS])


def speculative(target, verifier, *, power=1.0):
    model, params = target
    base, drafter_params = tiny.dflash(model)
    sampling = GREEDY if verifier in ("point_mass", "tree") else TEMPERATURE
    proposer = Misstated(model, base.drafter, block_size=3, sampling=sampling)
    # A drafter that is far from the target, and far from uniform.
    drafter_params = tiny.scaled(drafter_params, 2.0)
    both = {"target": params, "drafter": drafter_params, "power": jnp.float32(power)}
    if verifier == "tree":
        return TreeSpeculative(model, proposer, RULES, verifier, TEMPERATURE, num_nodes=6), both
    if verifier.startswith("chains:"):
        rule = verifier.removeprefix("chains:")
        strategy = ChainSpeculative(model, proposer, RULES, rule, TEMPERATURE, num_chains=3)
        return strategy, both
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
    strategy = Autoregressive(model, RULES, TEMPERATURE)
    laws.assert_same_law(tokens_of(decode(strategy, params, keys(seed=0))), law)


@pytest.mark.parametrize(
    "verifier",
    ["token", "block", "point_mass", "tree", *(f"chains:{rule}" for rule in CHAIN_RULES)],
)
def test_speculative_has_the_targets_law(target, law, verifier):
    strategy, params = speculative(target, verifier)
    state = decode(strategy, params, keys(seed=1))
    tokens = tokens_of(state)
    laws.assert_same_law(tokens, law)
    # Rejections, partial and full acceptance all happened.
    assert set(np.array(state.verified_BO[:, 0]).tolist()) == {0, 1, 2}
    # The test has the power to tell: the same counts under a law that is a little flatter.
    laws.assert_different_law(tokens, law**0.9 / (law**0.9).sum())


def test_control_misstated_draft_probabilities_are_noticed(target, law):
    strategy, params = speculative(target, "token", power=0.5)
    laws.assert_different_law(tokens_of(decode(strategy, params, keys(seed=2))), law)


class Selecting(ChainSpeculative):
    """Keeps the chain that the target likes best, and judges it as if it had been sampled alone."""

    def _judge(self, key, chains_AG, probs_GV, target_YV, rows_AH):
        scores_A = jnp.log(target_YV[rows_AH[:, :-1], chains_AG]).sum(axis=1)
        best = scores_A.argmax()
        return super()._judge(key, chains_AG[best][None], probs_GV, target_YV, rows_AH[best][None])


def test_control_the_best_of_several_chains_is_noticed(target, law):
    strategy, params = speculative(target, "chains:recursive")
    fields = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}
    tokens = tokens_of(decode(Selecting(**fields), params, keys(seed=5)))
    laws.assert_different_law(tokens, law)


def test_samples_belong_to_the_rows_key(target):
    """Place, neighbours and filling change nothing; the key does."""
    strategy, params = speculative(target, "token")
    keys_B = keys(seed=3)
    tokens_BT = tokens_of(decode(strategy, params, keys_B))
    order = np.random.default_rng(0).permutation(ROWS)
    half_B = jnp.arange(ROWS) % 2 == 0
    turned = decode(strategy, params, keys_B[order], active_B=half_B)
    assert (tokens_of(turned)[::2] == tokens_BT[order][::2]).all()
    assert not turned.count_B[1::2].any()
    assert (tokens_of(decode(strategy, params, keys(seed=4))) != tokens_BT).any()


def test_a_prompts_key_is_made_of_its_name_and_the_seed():
    def key_data(ids, *, seed):
        prompts = pad_prompts([(1,)] * len(ids), ids=ids, length=4, rows=4, seed=seed)
        return np.array(jax.random.key_data(prompts.keys_B))[: len(ids)]

    first = key_data(["a", "b", "c"], seed=0)
    assert (key_data(["c", "a"], seed=0) == first[[2, 0]]).all()
    assert len(np.unique(np.concatenate([first, key_data(["a"], seed=1)]), axis=0)) == 4
    # A seed is no part of a program, so that many samples compile nothing.
    programs = generate_module._row_keys._cache_size()
    for seed in (2, 2**31 + 5, 2**40 + 1):
        expected = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"a"))
        assert (key_data(["a"], seed=seed)[0] == np.array(jax.random.key_data(expected))).all()
    assert generate_module._row_keys._cache_size() == programs
