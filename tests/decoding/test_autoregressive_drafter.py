"""A small language model as drafter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.decoding import Speculative
from jaxspec.drafters.autoregressive import AutoregressiveProposer
from jaxspec.models.transformer import Transformer
from jaxspec.ops.sampling import Sampling
from tests.decoding import tiny

SMALL = TransformerConfig(
    vocab_size=tiny.VOCABULARY,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
    max_position_embeddings=256,
)


def test_the_target_drafting_for_itself_is_always_right():
    (plain, params), *_ = tiny.strategies()
    proposer = AutoregressiveProposer(
        plain.model, tiny.BLOCK_SIZE, suppressed_ids=tiny.RULES.suppressed_ids
    )
    strategy = Speculative(plain.model, proposer, tiny.RULES)
    responses = tiny.decode(strategy, {"target": params, "drafter": params})
    assert [r.tokens for r in responses] == [r.tokens for r in tiny.decode(plain, params)]
    # Its cache never falls behind: all drafts are accepted, round after round.
    assert [r.emitted for r in responses] == [
        (5, 5, 2),
        (5, 5, 5, 5, 3),
        (),
        (5, 2),
        (5, 5, 5, 5, 3),
    ]


@pytest.mark.parametrize(
    "block_size",
    [1, pytest.param(2, marks=pytest.mark.slow("a block of 5 drafts one after another, too")), 5],
)
def test_a_poor_drafter_changes_nothing(block_size):
    (plain, params), *_ = tiny.strategies()
    small = Transformer(SMALL)
    drafter = jax.jit(small.init)(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))["params"]
    strategy = Speculative(plain.model, AutoregressiveProposer(small, block_size), tiny.RULES)
    responses = tiny.decode(strategy, {"target": params, "drafter": drafter})
    assert [r.tokens for r in responses] == [r.tokens for r in tiny.decode(plain, params)]
    assert sum(sum(r.verified) for r in responses) <= 20


def test_drafts_come_with_the_probabilities_they_were_drawn_from():
    """Slot by slot as in a pass over the whole text, with the filters of the sampling."""
    sampling = Sampling(0.7, top_k=9)
    model, params = tiny.target()
    proposer = AutoregressiveProposer(model, 4, sampling=sampling, suppressed_ids=(43,))
    prompts = jnp.array([[4, 5, 6, 7], [9, 8, 0, 0]], jnp.int32)
    lengths, anchors = jnp.array([4, 2]), jnp.array([11, 12])
    both = {"drafter": params}

    @jax.jit
    def drafted(keys_B):
        state = proposer.begin(both, prompts, None, lengths, capacity=32)
        return proposer.propose(both, state, anchors, keys_B)

    @jax.jit
    def logits_of(tokens_BS):
        hidden = model.apply({"params": params}, tokens_BS).hidden_BSD
        return model.apply({"params": params}, hidden, method="logits")

    draft, state = drafted(jax.random.split(jax.random.key(0), 2))
    assert state.cache.lengths_B.tolist() == [3, 1]
    for row in range(2):
        prompt = prompts[row, : lengths[row]].tolist()
        text = [*prompt, int(anchors[row]), *draft.tokens_BG[row].tolist()]
        logits = logits_of(jnp.array([text]))[0].at[:, 43].set(-np.inf)
        expected = sampling.probabilities(logits[len(prompt) : len(prompt) + 3])
        np.testing.assert_allclose(draft.probs_BGV[row], expected, atol=1e-5)
        assert (np.take_along_axis(expected, draft.tokens_BG[row][:, None], 1) > 0).all()
    assert ((draft.probs_BGV > 0).sum(axis=-1) == 9).all()
