"""Greedy decoding with windows shorter than every longer prompt, in target and drafter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import Autoregressive, Speculative, TreeSpeculative
from jaxspec.models.dflash import DFlash
from tests.decoding import tiny

WINDOW = 4
ARCHITECTURE = dataclasses.replace(
    tiny.ARCHITECTURE,
    layer_types=("sliding_attention", "full_attention"),
    sliding_window=WINDOW,
)


@pytest.fixture(scope="module")
def plain():
    """Responses of one token a pass."""
    model, params = tiny.target(ARCHITECTURE)
    return tiny.decode(Autoregressive(model, tiny.RULES), params)


def sliding_drafter():
    """(proposer, params) whose layers slide, too."""
    proposer, params = tiny.dflash(tiny.target(ARCHITECTURE)[0])
    config = dataclasses.replace(
        proposer.drafter.config,
        layer_types=("full_attention", "sliding_attention"),
        sliding_window=WINDOW,
    )
    drafter = DFlash(config, proposer.drafter.width)
    return dataclasses.replace(proposer, drafter=drafter), params


def test_one_token_a_pass_is_the_argmax_of_one_pass_without_a_cache(plain):
    assert max(map(len, tiny.PROMPTS)) > 4 * WINDOW
    model, params = tiny.target(ARCHITECTURE)

    @jax.jit
    def logits(tokens):
        hidden = model.apply({"params": params}, tokens).hidden_BSD
        return model.apply({"params": params}, hidden, method="logits")

    texts = np.zeros((len(plain), 64), np.int32)
    for row, (prompt, response) in enumerate(zip(tiny.PROMPTS, plain, strict=True)):
        text = (*prompt, *response.tokens)
        texts[row, : len(text)] = text
    expected = np.array(logits(texts))
    expected[..., list(tiny.RULES.suppressed_ids)] = -np.inf
    for row, (prompt, response) in enumerate(zip(tiny.PROMPTS, plain, strict=True)):
        first = len(prompt) - 1
        greedy = expected[row, first : first + len(response.tokens)].argmax(-1)
        assert tuple(greedy) == response.tokens
    full = tiny.decode(Autoregressive(tiny.target()[0], tiny.RULES), params)
    assert [r.tokens for r in full] != [r.tokens for r in plain], "the window changes something"


@pytest.mark.parametrize("loop", [Speculative, TreeSpeculative])
def test_a_sliding_drafter_changes_no_output(plain, loop):
    model, params = tiny.target(ARCHITECTURE)
    proposer, drafter_params = sliding_drafter()
    options = {"num_nodes": 12} if loop is TreeSpeculative else {}
    strategy = loop(model, proposer, tiny.RULES, **options)
    responses = tiny.decode(strategy, {"target": params, "drafter": drafter_params})
    assert [r.tokens for r in responses] == [r.tokens for r in plain]


@pytest.mark.parametrize("errors", [0, 7])
def test_accepted_drafts_and_rejected_ones_change_no_output(plain, errors):
    """Whole blocks are kept where the script is right; where it errs, the cache is cut back."""
    model, params = tiny.target(ARCHITECTURE)
    script = np.zeros((len(plain), 24), np.int32)
    for row, response in enumerate(plain):
        script[row, : len(response.tokens)] = response.tokens
    if errors:
        script[:, 3::errors] = (script[:, 3::errors] + 1) % 60
    both = {"target": params, "drafter": jnp.asarray(script)}
    strategy = Speculative(model, tiny.Scripted(), tiny.RULES)
    prompts, capacity = tiny.batch()
    state = strategy.start(both, prompts, capacity=capacity)
    responses = tiny.responses_of(strategy.run(both, state))
    assert [r.tokens for r in responses] == [r.tokens for r in plain]
    kept = {count for r in responses for count in r.emitted[:-1]}
    assert kept == {tiny.BLOCK_SIZE} if not errors else len(kept) > 1
