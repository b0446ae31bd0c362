"""A small language model as drafter."""

import dataclasses

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
    # A block of 1 drafts nothing, but its pass reads what was emitted.
    passes = max(1, block_size - 1)
    assert [r.draft_passes for r in responses] == [passes * len(r.emitted) for r in responses]


@pytest.mark.parametrize("rows", [tiny.VOCABULARY - 1, tiny.VOCABULARY + 3])
def test_an_embedding_may_have_other_rows_than_the_targets(rows):
    """Drafts, and the distributions that they come with, are over the target's ids."""
    (plain, params), *_ = tiny.strategies()
    narrow = min(rows, tiny.VOCABULARY)
    added = rows - narrow

    def resized(matrix_VD):
        # The likeliest logits by far, if they were not left out.
        return jnp.concatenate([matrix_VD[:narrow], jnp.full((added, matrix_VD.shape[1]), 9.0)])

    drafter = {
        **params,
        "embed": {"embedding": resized(params["embed"]["embedding"])},
        "head": {"kernel": resized(params["head"]["kernel"].T).T},
    }
    config = dataclasses.replace(plain.model.config, vocab_size=rows)
    proposer = AutoregressiveProposer(
        type(plain.model)(config),
        tiny.BLOCK_SIZE,
        sampling=Sampling(1.0, top_k=9),
        suppressed_ids=tiny.RULES.suppressed_ids,
        target_rows=tiny.VOCABULARY,
    )

    @jax.jit
    def drafted(keys_B):
        tokens, lengths = jnp.array([[4, tiny.VOCABULARY - 1, 6]], jnp.int32), jnp.array([3])
        state = proposer.begin({"drafter": drafter}, tokens, None, lengths, capacity=32)
        draft, _ = proposer.propose({"drafter": drafter}, state, jnp.array([5]), keys_B)
        return draft

    @jax.jit
    def first_of_target():
        tokens = jnp.array([[4, narrow - 1, 6, 5]], jnp.int32)
        hidden = plain.model.apply({"params": params}, tokens).hidden_BSD
        return plain.model.apply({"params": params}, hidden, method="logits")[0, -1]

    draft = drafted(jax.random.split(jax.random.key(0), 1))
    assert draft.probs_BGV.shape == (1, tiny.BLOCK_SIZE - 1, tiny.VOCABULARY)
    banned = jnp.array(tiny.RULES.suppressed_ids, jnp.int32)
    logits_V = first_of_target().at[banned].set(-np.inf).at[narrow:].set(-np.inf)
    expected = Sampling(1.0, top_k=9).probabilities(logits_V[None])
    np.testing.assert_allclose(draft.probs_BGV[0, 0], expected[0], atol=1e-5)


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
