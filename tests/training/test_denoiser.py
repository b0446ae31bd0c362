"""What a denoiser is trained on is what drafting meets, on however many devices."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import DiTConfig, LossConfig, MaskedTransformerConfig, MeshConfig
from jaxspec.drafters.denoiser import CachedDenoiserProposer, DenoiserProposer
from jaxspec.losses import LossWeights
from jaxspec.models.dit import DiT
from jaxspec.models.registry import make_denoiser
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules
from jaxspec.training.denoiser import DenoiserObjective
from jaxspec.training.lora import LowRankObjective, init_updates, merged, with_updates
from tests.denoisers import random_denoiser
from tests.training import tiny

KEY = jax.random.key(3)
LOSS = LossConfig(decay=4.0, focal=0.3, chain=5.0)
WEIGHTS = LossWeights.from_config(LOSS)
MASK, VOCABULARY, BLOCK = 3, 64, 5
CONFIG = DiTConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    conditioning_size=8,
    max_position_embeddings=64,
    mask_token_id=MASK,
)
CONTEXTS = ("bidirectional", "causal")


def objective(context="causal", goal="draft", **changes):
    model = DiT(dataclasses.replace(CONFIG, context=context, **changes))
    return DenoiserObjective(model, LOSS, goal, anchors=4, block_size=BLOCK, batch_size=8)


def random_params(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return random_denoiser(config, spread=0.2)[1]


@functools.cache
def untrained():
    model = objective().model
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


@functools.cache
def program(trained):
    """Terms and metrics, and the counts that follow from the masks. Tests share it."""

    def compute(params, frozen, batch, key, weights):
        return trained(params, frozen, batch, key, weights), trained.counts(batch, key, weights)

    return jax.jit(compute)


def terms_of(trained, params, batch, key=KEY):
    """The terms alone."""
    return program(trained)(params, {}, batch, key, WEIGHTS)[0][0]


@pytest.mark.parametrize("context", CONTEXTS)
def test_blocks_are_read_as_in_drafting(context):
    """Each block alone behind its own prefix, whatever else stands in its row."""
    trained, params = objective(context), random_params()
    batch = tiny.batch()

    @jax.jit
    def packed(params, batch):
        anchors_BN, labels_BNG, mask_BNG = trained.blocks(batch, KEY)
        output = trained.read_blocks(params, batch, anchors_BN, jnp.full_like(labels_BNG, MASK))
        logits = trained.model.apply({"params": params}, output.hidden_BSD, method="logits")
        return anchors_BN, mask_BNG, logits.reshape(*labels_BNG.shape, -1)

    anchors, mask, logits = jax.device_get(packed(params, batch))
    kind = DenoiserProposer if context == "bidirectional" else CachedDenoiserProposer
    proposer = kind(trained.model, VOCABULARY, BLOCK, suppressed_ids=(MASK,))
    prefixes, lengths, tokens, expected = [], [], [], []
    for row, block in zip(*np.nonzero(mask[..., 0]), strict=True):
        anchor = anchors[row, block]
        start = anchor - batch["positions"][row, anchor]
        prefix = batch["tokens"][row, start:anchor]
        prefixes.append(np.pad(prefix, (0, 24 - len(prefix)), constant_values=60))
        lengths.append(len(prefix))
        tokens.append(batch["tokens"][row, anchor])
        expected.append(logits[row, block])
    assert len(lengths) > 20 and min(lengths) < 4 and max(lengths) > 8

    @jax.jit
    def drafted(params, prefixes, lengths, anchors):
        both = {"drafter": params}
        state = proposer.begin(both, prefixes, None, lengths, capacity=32)
        return proposer.marginal_logits(both, state, anchors)

    found = drafted(params, np.array(prefixes), np.array(lengths), np.array(tokens))
    found, expected = np.delete(found, MASK, -1), np.delete(expected, MASK, -1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("context", "goal", "copies"),
    [
        ("bidirectional", "elbo", 1),
        *(("bidirectional", goal, 2) for goal in ("score_entropy", "draft", "llada")),
        *(("causal", goal, 2) for goal in ("elbo", "draft")),
        pytest.param(
            *("causal", "score_entropy", 2),
            marks=pytest.mark.slow("elbo in this context and score entropy in the other cover it"),
        ),
    ],
)
def test_a_batch_is_the_sum_of_its_parts(context, goal, copies):
    """What data parallelism and gradient accumulation rest on: rows keep their random numbers.

    Halves that come twice have the shape of the whole batch, and so its program.
    """
    trained, params, batch = objective(context, goal), random_params(), tiny.batch()
    parts = [
        {name: np.concatenate([value[half::2]] * copies) for name, value in batch.items()}
        for half in range(2)
    ]
    (whole, metrics), counts = program(trained)(params, {}, batch, KEY, WEIGHTS)
    halves = [terms_of(trained, params, part) for part in parts]
    for name, (numerator, count) in whole.items():
        assert count > 0
        total, number = (sum(half[name][i] for half in halves) / copies for i in range(2))
        np.testing.assert_allclose(numerator, total, rtol=1e-5)
        np.testing.assert_allclose(count, number, rtol=1e-6)
    assert set(counts) >= set(whole) - {"first_error_focal"}
    for name, count in counts.items():
        np.testing.assert_allclose(count, whole[name][1], rtol=1e-6)
    assert all(np.isfinite(value).all() for term in metrics.values() for value in term)


@pytest.mark.parametrize(
    ("context", "goal"),
    [("bidirectional", "elbo"), ("bidirectional", "score_entropy"), ("causal", "llada")],
)
def test_chunks_of_tokens_change_neither_terms_nor_gradients(context, goal):
    """Nor do the tokens that fill up the last chunk: 5 is no divisor."""
    params, batch = random_params(), tiny.batch()

    def value(params, trained):
        terms, _ = trained(params, {}, batch, KEY, WEIGHTS)
        return trained.total(terms, WEIGHTS)

    whole = objective(context, goal)
    chunked = dataclasses.replace(whole, chunk_tokens=5)
    step = jax.jit(jax.value_and_grad(value), static_argnums=1)
    for got, want in zip(
        jax.tree.leaves(step(params, chunked)), jax.tree.leaves(step(params, whole)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_untrained_denoiser_pays_log_v_for_each_token(context):
    """E[masked / t] = 1 - eps, so the bound is log(V - 1) a token before anything is learned."""
    trained, params = objective(context, "elbo"), untrained()
    batch = tiny.batch()
    terms = [terms_of(trained, params, batch, jax.random.key(seed))["elbo"] for seed in range(240)]
    numerators, counts = np.array(terms).T
    mean, error = numerators.sum() / counts.sum(), np.std(numerators / counts) / math.sqrt(240)
    assert abs(mean - math.log(VOCABULARY - 1)) < 4 * error
    assert error < 0.15


SDAR = MaskedTransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
    mask_token_id=MASK,
    context="block_causal",
    block_length=6,
)


@pytest.mark.parametrize("blocks", [False, True], ids=["rows", "blocks"])
def test_llada_pays_log_v_for_each_answer(blocks):
    """E[masked / p] = 1, whatever an answer's length; rows without one do not count."""
    trained, params, batch = objective("bidirectional", "llada"), untrained(), tiny.batch()
    if blocks:
        model = make_denoiser(SDAR)
        trained = dataclasses.replace(trained, model=model)
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
        # A head of zeros: nothing is known yet.
        params = {**params, "embed": jax.tree.map(jnp.zeros_like, params["embed"])}
    batch["loss_mask"][0] = False
    answers = int(batch["loss_mask"].any(axis=1).sum())
    terms = [terms_of(trained, params, batch, jax.random.key(seed))["llada"] for seed in range(240)]
    numerators, counts = np.array(terms).T
    assert set(counts) == {answers} and answers == len(batch["loss_mask"]) - 1
    means = numerators / counts
    assert abs(means.mean() - math.log(VOCABULARY)) < 4 * np.std(means) / math.sqrt(240)
    assert np.std(means) / math.sqrt(240) < 0.3


@functools.cache
def low_rank_updates():
    """Fresh ones, of rank 2."""
    fresh = jax.jit(functools.partial(init_updates, rank=2))
    return jax.device_get(fresh(jax.random.key(5), random_params()))


def test_updates_of_low_rank_change_nothing_at_first():
    inner, params, batch = objective(), random_params(), tiny.batch()
    adapted = LowRankObjective(inner, scale=2.0)
    updates = low_rank_updates()
    assert set(updates) == {
        f"layers/{name}/kernel" for name in ("down", "modulation", "o", "qkv", "up")
    }
    (plain, _), plain_counts = program(inner)(params, {}, batch, KEY, WEIGHTS)
    (same, _), counts = program(adapted)(updates, params, batch, KEY, WEIGHTS)
    for name in plain:
        np.testing.assert_allclose(plain[name], same[name], rtol=1e-6)
    np.testing.assert_allclose(adapted.total(same, WEIGHTS), inner.total(plain, WEIGHTS), rtol=1e-6)
    assert counts.keys() == plain_counts.keys()


def test_updates_of_low_rank_are_products():
    params, updates = random_params(), {**low_rank_updates()}
    a = np.asarray(updates["layers/o/kernel"]["a"], np.float64)
    b = np.random.default_rng(0).normal(size=updates["layers/o/kernel"]["b"].shape)
    updates["layers/o/kernel"] = {
        "a": updates["layers/o/kernel"]["a"],
        "b": np.asarray(b, np.float32),
    }
    changed = jax.jit(with_updates, static_argnames="scale")(params, updates, scale=0.5)
    for layer in range(2):
        expected = params["layers"]["o"]["kernel"][layer] + 0.5 * a[layer] @ b[layer]
        np.testing.assert_allclose(changed["layers"]["o"]["kernel"][layer], expected, atol=1e-6)
    same = jax.tree.map(np.array_equal, params, changed)
    assert [str(path) for path, leaf in jax.tree_util.tree_flatten_with_path(same)[0] if not leaf]
    assert sum(not leaf for leaf in jax.tree.leaves(same)) == 1


def test_a_sharded_base_gives_a_model_that_is_sharded_as_it_is():
    generator = np.random.default_rng(0)
    updates = jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), low_rank_updates()
    )
    params = random_params()
    expected = with_updates(jax.tree.map(jnp.asarray, params), updates, scale=0.3)
    shardings = Rules().shardings(params, make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    found = merged(jax.device_put(params, shardings), updates, scale=0.3)
    assert any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))
    jax.tree.map(
        lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted, leaf.ndim) or pytest.fail(),
        found,
        shardings,
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_updates_of_low_rank_that_cannot_be_are_refused():
    shapes = jax.eval_shape(random_params)
    with pytest.raises(ValueError, match="lora_rank must be from 1 to 8 for layers/modulation"):
        init_updates(KEY, shapes, rank=9)
    with pytest.raises(ValueError, match="no matrices under 'layers'"):
        init_updates(KEY, {"embed": shapes["embed"]}, rank=1)


def test_terms_that_need_the_targets_rows_are_refused():
    loss = LossConfig(extra=("forward_kl=0.5",))
    with pytest.raises(ValueError, match="'forward_kl' compares with the target's distributions"):
        dataclasses.replace(objective(), loss=loss).check()
    dataclasses.replace(objective(goal="elbo"), loss=loss).check()
