"""Exact greedy decoding with GPT-2 and GPT-Neo targets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import GPT2Config
from jaxspec.decoding import Autoregressive, DecodeRules, Speculative, TreeSpeculative
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.models.gpt2 import GPT2
from tests.decoding import tiny

RULES = DecodeRules(24, stop_ids=(1, 2))
GPT_2 = GPT2Config(
    vocab_size=tiny.VOCABULARY,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=48,
    # As many as the longest prompt and its response need: rounds overshoot the table.
    max_position_embeddings=max(map(len, tiny.PROMPTS)) + RULES.max_new_tokens,
    unroll_layers=True,
)
GPT_NEO = dataclasses.replace(
    GPT_2,
    family="gpt_neo",
    layer_types=("full_attention", "sliding_attention"),
    sliding_window=4,
    unroll_layers=False,
)
CONFIGS = {"gpt2": GPT_2, "gpt_neo": GPT_NEO}


@pytest.fixture(scope="module", params=CONFIGS)
def target(request):
    """(model, params) that are far from their initial values, so that outputs vary."""
    model = GPT2(CONFIGS[request.param])
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    generator = np.random.default_rng(3)

    def drawn(path, leaf):
        # Scales of norms lie around 1, as in every trained model: around 0 they would pass on so
        # little of the text that a response keeps to one token.
        middle = 1.0 if path[-1].key == "scale" else 0.0
        noise = 0.4 * generator.standard_normal(leaf.shape)
        return jnp.asarray(middle + noise, "float32")

    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    # A random bias here would have its say in every token alike.
    params["final_norm"] = {"scale": jnp.ones(32), "bias": jnp.zeros(32)}
    return model, params


@pytest.fixture(scope="module")
def plain(target):
    """Responses of one token a pass."""
    model, params = target
    return tiny.decode(Autoregressive(model, RULES), params)


def test_one_token_a_pass_is_the_argmax_of_one_pass_without_a_cache(target, plain):
    model, params = target

    @jax.jit
    def logits(tokens):
        hidden = model.apply({"params": params}, tokens).hidden_BSD
        return model.apply({"params": params}, hidden, method="logits")

    texts = np.zeros((len(plain), model.config.max_position_embeddings), np.int32)
    for row, (prompt, response) in enumerate(zip(tiny.PROMPTS, plain, strict=True)):
        text = (*prompt, *response.tokens)
        texts[row, : len(text)] = text
    expected = np.asarray(logits(texts))
    for row, (prompt, response) in enumerate(zip(tiny.PROMPTS, plain, strict=True)):
        first = len(prompt) - 1
        greedy = expected[row, first : first + len(response.tokens)].argmax(-1)
        assert tuple(greedy) == response.tokens
    assert len({token for r in plain for token in r.tokens}) > 10
    assert max(len(r.tokens) for r in plain) == RULES.max_new_tokens


def test_prompt_lookup_changes_no_output(target, plain):
    model, params = target
    strategy = Speculative(model, NGramProposer(tiny.BLOCK_SIZE), RULES)
    responses = tiny.decode(strategy, {"target": params, "drafter": {}})
    assert [r.tokens for r in responses] == [r.tokens for r in plain]


@pytest.mark.parametrize("loop", [Speculative, TreeSpeculative])
def test_a_diffusion_drafter_changes_no_output(target, plain, loop):
    """The drafter reads captured states and uses the target's embedding and head."""
    model, params = target
    proposer, drafter_params = tiny.dflash(model)
    options = {"num_nodes": 12} if loop is TreeSpeculative else {}
    responses = tiny.decode(
        loop(model, proposer, RULES, **options), {"target": params, "drafter": drafter_params}
    )
    assert [r.tokens for r in responses] == [r.tokens for r in plain]


def test_accepted_drafts_and_rejected_ones_change_no_output(target, plain):
    """Blocks are kept as far as the script is right; where it errs, the cache is cut back."""
    model, params = target
    script = np.zeros((len(plain), 24), np.int32)
    for row, response in enumerate(plain):
        script[row, : len(response.tokens)] = response.tokens
    script[:, 3::7] = (script[:, 3::7] + 1) % 60
    strategy = Speculative(model, tiny.Scripted(), RULES)
    prompts, capacity = tiny.batch()
    both = {"target": params, "drafter": script}
    state = strategy.start(both, prompts, capacity=capacity)
    responses = tiny.responses_of(strategy.run(both, state), rules=RULES)
    assert [r.tokens for r in responses] == [r.tokens for r in plain]
    assert len({count for r in responses for count in r.emitted[:-1]}) > 1


def test_a_text_longer_than_the_table_of_positions_is_refused(target):
    model, params = target
    rules = dataclasses.replace(RULES, max_new_tokens=25)
    with pytest.raises(ValueError, match=r"more than the target's 54 positions"):
        tiny.decode(Autoregressive(model, rules), params)
