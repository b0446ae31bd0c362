"""Block diffusion against the slow reference, and equalities that theory promises."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import (
    BlockDiffusion,
    DiffusionRules,
    Factor,
    Prompts,
    Scheduled,
    Threshold,
    generate_diffusion,
)
from jaxspec.ops.sampling import Sampling
from tests.decoding.diffusion_reference import (
    EOS,
    MASK,
    MODEL,
    VOCABULARY,
    parameters,
    slow_decode,
)

PADDED, RESPONSE, BLOCK = 9, 12, 4
PROMPTS = tuple(
    tuple(np.random.default_rng(length).integers(0, EOS, length).tolist()) for length in (6, 3, 9)
)
RULES = DiffusionRules(MASK, response_length=RESPONSE, block_length=BLOCK, unmasking=Threshold(0.6))
KEYS = jax.random.split(jax.random.key(5), len(PROMPTS))
CACHES = ("none", "prefix", "dual")
UNMASKING = {"scheduled": Scheduled(3), "threshold": Threshold(0.6), "factor": Factor(1.0)}


@functools.cache
def params():
    return parameters()


def batch(prompts=PROMPTS, keys=KEYS, *, padded=PADDED):
    tokens = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return Prompts(
        tokens_BS=jnp.asarray(tokens),
        lengths_B=jnp.asarray([len(prompt) for prompt in prompts], jnp.int32),
        active_B=jnp.ones(len(prompts), bool),
        keys_B=keys,
    )


def decode(rules, prompts=None, weights=None):
    """(responses, passes by block, steps of reveal) of each row."""
    decoder = BlockDiffusion(MODEL, rules)
    prompts = batch() if prompts is None else prompts
    state = jax.device_get(
        decoder.run(params() if weights is None else weights, decoder.start(prompts))
    )
    assert not state.failed_B.any()
    return [
        (
            state.tokens_BT[row, start : start + rules.response_length].tolist(),
            state.passes_BN[row].tolist(),
            state.revealed_BT[row, start : start + rules.response_length].tolist(),
        )
        for row, start in enumerate(prompts.lengths_B.tolist())
    ]


def change(**changes):
    return dataclasses.replace(RULES, **changes)


def check_against_the_reference(rules):
    got = decode(rules)
    for prompt, key, (tokens, passes, revealed) in zip(PROMPTS, KEYS, got, strict=True):
        slow = slow_decode(params(), prompt, rules, key=key)
        assert tokens == slow.tokens
        assert passes[: len(slow.passes)] == slow.passes and not any(passes[len(slow.passes) :])
        assert revealed == slow.revealed
    return got


APART = pytest.mark.slow("this rule without a cache, and this cache with another rule, cover it")


@pytest.mark.parametrize(
    ("name", "caching"),
    [
        *(("threshold", caching) for caching in CACHES),
        *((name, "none") for name in ("scheduled", "factor")),
        ("scheduled", "dual"),
        *(pytest.param(name, "prefix", marks=APART) for name in ("scheduled", "factor")),
        pytest.param("factor", "dual", marks=APART),
    ],
)
def test_every_cache_with_every_rule_equals_the_reference(caching, name):
    got = check_against_the_reference(change(caching=caching, unmasking=UNMASKING[name]))
    if name == "scheduled":
        assert all(passes == [3, 3, 3] for _, passes, _ in got)
    assert len({tuple(tokens) for tokens, _, _ in got}) == len(PROMPTS)


@pytest.mark.parametrize("caching", ["none", "dual"])
def test_guidance_equals_the_reference(caching):
    guided = check_against_the_reference(change(caching=caching, guidance=1.5))
    assert guided != decode(change(caching=caching)), "guidance has to matter"


WARM = change(caching="dual", sampling=Sampling(0.8, top_k=20), unmasking=Threshold(0.3))


def test_sampling_equals_the_reference():
    assert check_against_the_reference(WARM) != decode(change(caching="dual"))


def test_rows_do_not_depend_on_their_neighbours():
    together = decode(WARM)
    for row, prompt in enumerate(PROMPTS):
        assert decode(WARM, batch([prompt], KEYS[row : row + 1], padded=12)) == [together[row]]


@pytest.mark.parametrize("caching", CACHES)
def test_block_causal_models_lose_nothing_by_a_cache(caching):
    """Their context does not depend on the block. Prompts of 6, 3 and 9 start within blocks."""
    rules = change(caching=caching, block_causal=True)
    assert check_against_the_reference(rules) == decode(change(block_causal=True))


def test_caches_of_a_bidirectional_model_are_an_approximation():
    """A control: with these weights the three caches do not give the same text."""
    texts = {caching: [row[0] for row in decode(change(caching=caching))] for caching in CACHES}
    assert texts["none"] != texts["prefix"] and texts["none"] != texts["dual"]


def test_prefix_and_dual_are_the_same_where_nothing_follows_the_block():
    single = change(block_length=RESPONSE, caching="prefix")
    assert decode(single) == decode(dataclasses.replace(single, caching="dual"))


def test_one_pass_a_block_needs_no_cache():
    rules = change(unmasking=Scheduled(1))
    expected = decode(rules)
    assert all(passes == [1, 1, 1] for _, passes, _ in expected)
    assert decode(dataclasses.replace(rules, caching="dual")) == expected


def test_rows_that_only_fill_the_batch_take_no_pass():
    prompts = dataclasses.replace(batch(), active_B=jnp.array([True, False, True]))
    got, expected = decode(RULES, prompts), decode(RULES)
    assert (got[0], got[2]) == (expected[0], expected[2])
    assert got[1] == ([MASK] * RESPONSE, [0, 0, 0], [-1] * RESPONSE)


def test_the_stages_of_a_prefix_cache():
    decoder = BlockDiffusion(MODEL, change(caching="prefix", response_length=40))
    assert list(decoder.stages()) == [(10, 5), (5, 8), (2, 9), (1, 10)]
    for caching in ("none", "dual"):
        rules = change(caching=caching, response_length=40)
        assert list(BlockDiffusion(MODEL, rules).stages()) == [(1, 10)]
    reach, block = {}, 0
    for blocks, until in decoder.stages():
        while block < until:
            reach[block], block = blocks, block + 1
    assert all(10 - n <= blocks < 2 * (10 - n) + 1 for n, blocks in reach.items())


def stop_token():
    """A token that ends the first block of the first row."""
    return decode(RULES)[0][0][BLOCK - 1]


def test_a_stop_token_ends_a_row_after_its_block():
    got = check_against_the_reference(change(stop_ids=(stop_token(),)))
    assert got[0][0][BLOCK:] == [MASK] * (RESPONSE - BLOCK)
    assert got[0][1][1:] == [0, 0]


def test_responses_end_with_the_stop_token():
    stop = stop_token()
    names = [f"prompt/{row}" for row in range(len(PROMPTS))]
    decoder = BlockDiffusion(MODEL, change(stop_ids=(stop,)))
    seen = []
    responses = generate_diffusion(
        decoder, params(), PROMPTS, ids=names, batch_size=2, progress=seen.append
    )
    assert seen == [1, 1, 1] and [response.prompt_id for response in responses] == names
    for (tokens, passes, _), response in zip(decode(decoder.rules), responses, strict=True):
        ended = stop in tokens
        assert response.stopped == ended
        assert list(response.tokens) == (tokens[: tokens.index(stop) + 1] if ended else tokens)
        assert response.passes == tuple(count for count in passes if count)
        assert response.num_passes == sum(passes)
        assert response.filled == BLOCK * len(response.passes)


def test_suppressed_tokens_do_not_appear():
    banned = tuple(sorted({token for tokens, _, _ in decode(RULES) for token in tokens}))[:5]
    got = check_against_the_reference(change(suppressed_ids=banned))
    assert not {token for tokens, _, _ in got for token in tokens} & set(banned)


@pytest.mark.parametrize("unmasking", [Scheduled(2), Threshold(0.3)], ids=str)
def test_tokens_that_come_last(unmasking):
    often = tuple(sorted({token for tokens, _, _ in decode(RULES) for token in tokens}))[:5]
    plain = check_against_the_reference(change(unmasking=unmasking))
    got = check_against_the_reference(change(unmasking=unmasking, last_ids=often))
    assert got != plain
    assert {token for tokens, _, _ in got for token in tokens} & set(often)


def test_nan_ends_its_row_alone_and_names_the_prompt():
    weights = params()
    broken = weights["embed"]["embedding"].at[EOS].set(jnp.nan)
    weights = {**weights, "embed": {"embedding": broken}}
    decoder = BlockDiffusion(MODEL, change(suppressed_ids=(EOS,)))
    prompts = [PROMPTS[0], (1, EOS, 2), PROMPTS[2]]
    state = decoder.run(weights, decoder.start(batch(prompts)))
    assert state.failed_B.tolist() == [False, True, False]
    assert state.passes_BN[1].tolist() == [1, 0, 0]
    expected = decode(decoder.rules)
    start = len(prompts[2])
    assert state.tokens_BT[2, start : start + RESPONSE].tolist() == expected[2][0]
    with pytest.raises(ValueError, match="NaN or infinite logits on prompt 'b'"):
        generate_diffusion(decoder, weights, prompts, ids=["a", "b", "c"])


def test_no_pass_is_compiled_out_of_the_loop():
    """The whole decoding is one program: blocks and steps are loops of the compiler."""
    decoder = BlockDiffusion(MODEL, change(caching="dual"))
    text = jax.make_jaxpr(lambda p, s: decoder.run(p, s))(params(), decoder.start(batch()))
    assert str(text).count("while[") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response_length": 10}, "multiple of block_length"),
        ({"response_length": 0}, "multiple of block_length"),
        ({"block_length": 0}, "block_length"),
        ({"unmasking": Scheduled(5)}, "5 steps"),
        ({"caching": "suffix"}, "none, prefix, dual"),
        ({"guidance": -1.0}, "guidance"),
        ({"stop_ids": (MASK,)}, "Stop tokens"),
        ({"stop_ids": (3,), "suppressed_ids": (3,)}, "Stop tokens"),
    ],
)
def test_rules_refuse_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        change(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_id": VOCABULARY}, r"mask_id must lie in .* 0\.\.28: got \[29\]"),
        ({"stop_ids": (-1,)}, "stop_ids"),
        ({"response_length": 64}, "no room for a prompt"),
    ],
)
def test_decoders_refuse_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        BlockDiffusion(MODEL, change(**changes))


def test_prompts_are_checked():
    decoder = BlockDiffusion(MODEL, RULES)
    wrong = {
        "empty": [],
        "more than the model's 64 positions": [1] * 53,
        "holds the mask": [1, MASK],
        "from 1 to 29": [1, VOCABULARY],
        "from -1 to 3": [-1, 3],
        "no token": [[]],
        "batch_size": [[1]],
    }
    for message, prompt in wrong.items():
        prompts = prompt if message in ("empty", "no token", "batch_size") else [prompt]
        with pytest.raises(ValueError, match=message):
            generate_diffusion(decoder, params(), prompts, ids=["p"] * len(prompts), batch_size=0)
    with pytest.raises(ValueError, match="name for each"):
        generate_diffusion(decoder, params(), PROMPTS, ids=["p"])
