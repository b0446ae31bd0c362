"""The least work of a pass, counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxspec.config import (
    DrafterConfig,
    ExpertsConfig,
    RunConfig,
    TargetConfig,
    TransformerConfig,
)
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.parallel.chips import CHIPS
from jaxspec.planning.minimum import expert_kernels, least_operations
from jaxspec.planning.passes import Work, draft_pass, target_pass, training_step
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import initial_state
from jaxspec.training.tasks.drafter import DRAFTER

CONFIG = TransformerConfig(
    vocab_size=50,
    hidden_size=8,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=16,
)
LAYER = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
"""Entries of a layer's matrices: queries, keys and values, output, MLP."""


def shapes(config):
    model = Transformer(config)
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_step_reads_every_weight_and_the_cache_once():
    params = shapes(CONFIG)
    work = target_pass(params, CONFIG, rows=5, tokens=1, cached=20)
    products = 2 * (3 * LAYER + 8 * 50)
    attention = 3 * 4 * 2 * 4 * 21  # 4 C for each head and key, its own included.
    assert work.operations == 5 * (products + attention)
    slot = 2 * 3 * 1 * 4 * 4  # Keys and values of 3 layers in float32.
    states = 2 * 3 * 8 * 4
    assert work.memory_bytes == 4 * size(params) + 5 * (21 * slot + states)


def test_an_untied_embedding_is_only_looked_up():
    untied = dataclasses.replace(CONFIG, tie_embeddings=False)
    tied = target_pass(shapes(CONFIG), CONFIG, rows=1, tokens=1, cached=20)
    assert target_pass(shapes(untied), untied, rows=1, tokens=1, cached=20) == tied


def test_of_a_mixture_only_the_experts_that_tokens_are_sent_to_are_read():
    """8 experts of which a token passes 2: one token reads a quarter, two 7 of 16."""
    config = dataclasses.replace(
        CONFIG, experts=ExpertsConfig(num_experts=8, per_token=2, width=16)
    )
    params = shapes(config)
    experts = 3 * 8 * 3 * 8 * 16
    assert size(expert_kernels(params, config)) == experts
    for rows, share in ((1, 1 / 4), (2, 7 / 16)):
        work = target_pass(params, config, rows=rows, tokens=1, cached=0)
        states = rows * (2 * 3 * 1 * 4 * 4 + 2 * 3 * 8 * 4)
        expected = 4 * (size(params) - experts * (1 - share)) + states
        assert work.memory_bytes == pytest.approx(expected)
    assert expert_kernels(shapes(CONFIG), CONFIG) == []


def test_a_verification_does_what_its_rows_do_one_by_one():
    params = shapes(CONFIG)
    whole = target_pass(params, CONFIG, rows=2, tokens=4, cached=20)
    steps = [target_pass(params, CONFIG, rows=2, tokens=1, cached=20 + i) for i in range(4)]
    assert whole.operations == sum(step.operations for step in steps)
    assert whole.memory_bytes < 2 * steps[0].memory_bytes


def test_a_prefill_judges_its_last_token_only():
    params = shapes(CONFIG)
    one, all_ = (
        target_pass(params, CONFIG, rows=1, tokens=10, cached=0, judged=judged)
        for judged in (1, None)
    )
    assert all_.operations - one.operations == 9 * 2 * 8 * 50
    pairs = 10 * 11 / 2
    assert one.operations == 2 * (10 * 3 * LAYER + 8 * 50) + 3 * 4 * 2 * 4 * pairs


def test_a_sliding_layer_reads_its_window():
    sliding = dataclasses.replace(
        CONFIG,
        layer_types=("full_attention", "sliding_attention", "sliding_attention"),
        sliding_window=5,
    )
    params = shapes(CONFIG)
    full = target_pass(params, CONFIG, rows=1, tokens=1, cached=20)
    less = target_pass(params, sliding, rows=1, tokens=1, cached=20)
    assert full.memory_bytes - less.memory_bytes == pytest.approx(2 * 15 * 2 * 4 * 4)
    assert full.operations - less.operations == 2 * 16 * 4 * 2 * 4


def test_a_draft_reads_the_drafter_and_the_targets_head():
    config = resolve_config(
        DrafterConfig(block_size=4, target_layer_ids=(0, 2), num_layers=1),
        target=CONFIG,
        mask_token_id=0,
    )
    drafter = DFlash(config, 8)
    params = jax.eval_shape(
        lambda key: drafter.init(key, jnp.zeros((1, 2, 16)), method="initialise"),
        jax.random.key(0),
    )["params"]
    work = draft_pass(params, config, CONFIG, rows=3, cached=20)
    # Keys and values of the block and of the context that it takes in.
    products = 2 * 4 * (LAYER + 2 * 8 * 4 + 16 * 8)
    attention = 4 * 4 * 2 * 4 * (20 + 4)
    head = 2 * 3 * 8 * 50
    assert work.operations == 3 * (products + attention + head)
    kept, states = 24 * 2 * 4 * 4, 2 * 4 * 8 * 4
    assert work.memory_bytes == 4 * (size(params) + 8 * 50) + 3 * (kept + states)


def test_a_training_step_takes_what_is_counted_for_it():
    config = RunConfig(
        target=TargetConfig(path="", architecture=CONFIG), drafter=DrafterConfig(num_features=2)
    )
    task = DRAFTER.build(config)
    transform, _ = make_optimizer(config.optimizer, steps=10)
    state = jax.eval_shape(initial_state(task.init, transform), jax.random.key(0))
    work = training_step(task, state)
    assert work.operations == sum(least_operations(task).values())
    # AdamW keeps two numbers for each parameter.
    assert work.memory_bytes == pytest.approx(
        4 * (11 * size(state.params) + size(task.frozen_shapes)), rel=0.01
    )


def test_work_becomes_time():
    line = Work(operations=197e12, memory_bytes=819e9 / 2).roofline(CHIPS["v5e"])
    assert line.seconds == pytest.approx(1.0)
    assert (line.binding, line.terms["interconnect"]) == ("arithmetic", 0.0)
