"""What the compiled loops do not do: talk to the host, compile again, go on after NaN."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import DecodeRules, Speculative, generate
from jaxspec.decoding.autoregressive import Autoregressive
from jaxspec.decoding.generate import bucket_length, pad_prompts
from jaxspec.decoding.speculative import check_verifier
from jaxspec.models.transformer import Transformer
from jaxspec.ops.sampling import Sampling
from tests.decoding import tiny

KINDS = ["autoregressive", "speculative", "tree"]


@pytest.fixture(scope="module", params=range(3), ids=KINDS)
def strategy_and_params(request):
    return tiny.strategies()[request.param]


def test_no_transfer_inside_the_loop(strategy_and_params):
    strategy, params = strategy_and_params
    tiny.decode(strategy, params)
    prompts, capacity = tiny.batch(tiny.PROMPTS[1:3])
    with jax.transfer_guard("disallow"):
        state = strategy.start(params, prompts, capacity=capacity)
        state = jax.block_until_ready(strategy.run(params, state))
    # Rows that only fill the batch stay empty.
    assert state.count_B.tolist() == [*tiny.LENGTHS[1:3], 0, 0, 0]
    assert not state.failed_B.any()
    # The guard is awake: an argument that lies on the host is refused.
    lengths_B = np.ones(len(tiny.PROMPTS), np.int32)
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"[Dd]isallowed"):
        strategy.start(params, prompts.replace(lengths_B=lengths_B), capacity=capacity)


def test_the_program_holds_no_host_call(strategy_and_params):
    strategy, params = strategy_and_params
    prompts, capacity = tiny.batch()
    state = strategy.start(params, prompts, capacity=capacity)
    text = type(strategy).run.lower(strategy, params, state).as_text()
    assert "stablehlo.while" in text
    for word in ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv"):
        assert word not in text


def test_caches_are_written_in_place_and_never_copied(strategy_and_params):
    strategy, params = strategy_and_params
    prompts, capacity = tiny.batch()
    state = strategy.start(params, prompts, capacity=capacity)
    compiled = type(strategy).run.lower(strategy, params, state).compile()
    caches = [node for node in (state.cache, state.drafter) if node is not None]
    text = compiled.as_text()
    for cache in caches:
        shape = re.escape(f"f32[{','.join(map(str, cache.keys_LBRTC.shape))}]")
        assert re.search(rf"{shape}\S* (dynamic-update-slice|fusion|while|parameter)\(", text)
        assert not re.search(rf"{shape}\S* copy\(", text)
    size = sum(cache.keys_LBRTC.nbytes + cache.values_LBRTC.nbytes for cache in caches)
    # Donated: the result takes the place of what came in.
    assert compiled.memory_analysis().alias_size_in_bytes >= size


def test_a_second_prompt_of_the_bucket_compiles_nothing(strategy_and_params):
    strategy, params = strategy_and_params
    kind = type(strategy)
    tiny.decode(strategy, params, tiny.PROMPTS[:1])
    sizes = kind.start._cache_size(), kind.run._cache_size()
    tiny.decode(strategy, params, tiny.PROMPTS[1:3])
    # Nor does another drafter of the same shape: parameters are arguments.
    again = next(again for again, _ in tiny.strategies() if type(again) is kind)
    tiny.decode(again, tiny.scaled(params, 0.9), tiny.PROMPTS[3:4])
    assert (kind.start._cache_size(), kind.run._cache_size()) == sizes


def test_a_given_capacity_is_used(strategy_and_params):
    strategy, params = strategy_and_params
    given = tiny.decode(strategy, params, capacity=tiny.batch()[1])
    assert given == tiny.decode(strategy, params)


def with_poison(params, token):
    """The target's embedding of one token becomes NaN."""
    embedding = params["embed"]["embedding"].at[token].set(jnp.nan)
    return {**params, "embed": {"embedding": embedding}}


@pytest.mark.parametrize("where", ["prompt", "response"])
def test_nan_names_the_prompt(where):
    (plain, target), (fast, both), _ = tiny.strategies()
    clean = tiny.decode(plain, target)
    token = tiny.PROMPTS[3][0] if where == "prompt" else clean[3].tokens[5]
    failing = {
        name
        for name, prompt, response in zip(tiny.IDS, tiny.PROMPTS, clean, strict=True)
        if token in (*prompt, *response.tokens[:-1])
    }
    assert "prompt/3" in failing
    assert failing != set(tiny.IDS)
    poisoned = with_poison(target, token)
    for strategy, params in ((plain, poisoned), (fast, {**both, "target": poisoned})):
        named = set()
        for name, prompt in zip(tiny.IDS, tiny.PROMPTS, strict=True):
            try:
                tiny.decode(strategy, params, [prompt], [name])
            except ValueError as error:
                assert "NaN" in str(error)
                assert repr(name) in str(error)
                named.add(name)
        # A NaN that is only drafted, after what is emitted, may end a row as well.
        assert failing <= named if strategy is fast else failing == named
        with pytest.raises(ValueError, match="NaN") as error:
            tiny.decode(strategy, params)
        assert [name for name in named if repr(name) in str(error.value)]


@pytest.mark.parametrize("kind", [1, 2], ids=KINDS[1:])
def test_nan_of_a_drafter_is_not_silent(kind):
    """Drafts of NaN would only be rejected: the drafter would look useless, not broken."""
    strategy, params = tiny.strategies()[kind]
    params = {**params, "drafter": tiny.scaled(params["drafter"], jnp.nan)}
    with pytest.raises(ValueError, match=r"NaN or infinite logits on prompt .*target and"):
        tiny.decode(strategy, params)


def test_prompts_that_cannot_be_decoded_are_refused(strategy_and_params):
    strategy, params = strategy_and_params
    long = (1,) * 240
    cases = [
        ([], {}, "list of prompts is empty"),
        ([()], {}, "holds no token"),
        ([(1, 64)], {}, "embedding has 64 rows"),
        ([(-1,)], {}, "embedding has 64 rows"),
        ([long], {}, "240 tokens.*256 positions"),
        ([(1,) * 40], {"capacity": 64}, "too long for the cache.*64"),
        ([(1,)], {"batch_size": 0}, "batch_size must be at least 1"),
    ]
    for prompts, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            generate(strategy, params, prompts, ids=["p"] * len(prompts), **settings)
    with pytest.raises(ValueError, match="name for each"):
        generate(strategy, params, [(1,)], ids=[])


def test_rules_and_verifiers_are_checked():
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1: got 0"):
        DecodeRules(0)
    with pytest.raises(ValueError, match="Stop tokens cannot be suppressed: got \\[2\\]"):
        DecodeRules(4, (1, 2), (2, 3))
    cold, warm = Sampling(0.0), Sampling(1.0)
    check_verifier("greedy", sampling=cold, draft_sampling=cold)
    check_verifier("token", sampling=warm, draft_sampling=warm)
    check_verifier("point_mass", sampling=warm, draft_sampling=cold)
    for verifier, sampling, draft, message in (
        ("greedy", warm, cold, "does not fit temperature 1.0"),
        ("token", cold, warm, "does not fit temperature 0.0"),
        ("point_mass", cold, cold, "does not fit temperature 0.0"),
        ("token", warm, cold, "does not fit deterministic drafts"),
        ("point_mass", warm, warm, "does not fit sampled drafts"),
        ("best", warm, warm, "must be one of greedy, point_mass, token, block: got 'best'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_verifier(verifier, sampling=sampling, draft_sampling=draft)
    model, _ = tiny.target()
    proposer, _ = tiny.dflash(model)
    with pytest.raises(ValueError, match="does not fit"):
        Speculative(model, proposer, tiny.RULES, "token", warm)
    assert Autoregressive(model, tiny.RULES).round_tokens == 1


def test_buckets_are_powers_of_two():
    assert [bucket_length(n) for n in (1, 128, 129, 256, 300)] == [128, 128, 256, 256, 512]


def test_a_long_prompt_is_prefilled_without_its_scores_and_logits():
    length, rules = 4096, DecodeRules(4)
    config = dataclasses.replace(
        tiny.ARCHITECTURE, max_position_embeddings=2 * length, vocab_size=50_000
    )
    strategy = Autoregressive(Transformer(config), rules)
    tokens_BS = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(strategy.model.init, jax.random.key(0), tokens_BS)["params"]
    prompts = jax.eval_shape(
        lambda: pad_prompts([(1,)], ids=["long"], length=length, rows=1, seed=0)
    )
    lowered = Autoregressive.start.lower(strategy, params, prompts, capacity=length + 64)
    analysis = lowered.compile().memory_analysis()
    scores, logits = config.num_heads * length**2 * 4, length * config.vocab_size * 4
    assert analysis.temp_size_in_bytes < min(scores, logits) / 4
