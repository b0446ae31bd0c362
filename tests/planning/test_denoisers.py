"""Plans of runs that train a denoiser: least arithmetic, traffic, and settings that fit."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from jaxspec.config import DenoiserConfig, DiTConfig, MeshConfig
from jaxspec.models.block_diffusion import block_causal_mask, block_diffusion_mask
from jaxspec.parallel.chips import CHIPS
from jaxspec.planning.estimate import Shapes, estimate
from jaxspec.planning.minimum import without_recomputation
from jaxspec.planning.search import search, variants
from jaxspec.planning.step import plan_step
from jaxspec.planning.topologies import parse_topology
from jaxspec.training.passes import reading, spread_anchors
from jaxspec.training.tasks.registry import task_of
from tests.cli.test_plan import as_cpus_send
from tests.planning.test_minimum import changed, least, traced, turning

ROWS, LENGTH, BLOCKS, SLOTS = 16, 16, 2, 3
WIDTH, LAYERS, NOISE, VOCABULARY = 64, 2, 16, 64
DIT = DiTConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    num_layers=LAYERS,
    num_heads=2,
    conditioning_size=NOISE,
)
CAUSAL = dataclasses.replace(DIT, context="causal")
SHIPPED = {"path": "embedded", "num_layers": LAYERS, "objective": "llada"}
DENOISERS = {
    "mdlm": DenoiserConfig(architecture=DIT),
    "draft": DenoiserConfig(architecture=CAUSAL, objective="draft", block_size=SLOTS + 1),
    "draft, both ways": DenoiserConfig(architecture=DIT, objective="draft", block_size=SLOTS + 1),
    "llada": DenoiserConfig(**SHIPPED),
    "sdar": DenoiserConfig(**SHIPPED, context="block_causal", block_size=4),
    "lora": DenoiserConfig(**SHIPPED, lora_rank=4),
}


def run(name, mesh=None):
    config = changed(training={"task": "denoiser"}, data={"packing": False, "batch_size": ROWS})
    mesh = mesh or MeshConfig(data=1, fsdp=8)
    return dataclasses.replace(config, denoiser=DENOISERS[name], mesh=mesh)


@functools.cache
def planned(name):
    return plan_step(run(name), topology=parse_topology("8xH100"))


def test_a_traced_step_adds_turning_and_noise():
    """Nothing is hidden from a bidirectional model."""
    turned = 2 * LAYERS * LENGTH * turning(2 + 2)
    # All rows share a level of noise. Nobody asks for the gradient of its waves.
    kernels = 256 * NOISE + NOISE * NOISE + NOISE * 6 * WIDTH * LAYERS + NOISE * 2 * WIDTH
    noise = 3 * 2 * kernels - 2 * 256 * NOISE
    config = run("mdlm")
    assert traced(config) == sum(least(config).values()) + ROWS * turned + noise


def test_parts_by_hand():
    parts = least(run("mdlm"))
    layer = (3 + 1 + 4 + 4) * WIDTH * WIDTH
    forward = ROWS * LAYERS * (2 * layer * LENGTH + 4 * WIDTH * LENGTH**2)
    assert parts == {
        "denoiser forward": forward,
        "denoiser backward": 2 * forward,
        "head": ROWS * 3 * 2 * WIDTH * VOCABULARY * LENGTH,
    }


def test_updates_need_no_gradients_of_what_is_frozen():
    whole, updates = least(run("llada")), least(run("lora"))
    assert updates["denoiser backward"] == updates["denoiser forward"] == whole["denoiser forward"]
    assert updates["head"] == whole["head"] * 2 / 3
    # Of each matrix of the shipped target, D inputs and F outputs: 4 (D + F) numbers.
    sides = 2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 320)
    assert updates["updates"] == 3 * 2 * ROWS * LENGTH * LAYERS * 4 * sides


def test_a_target_in_a_folder_is_computed_again_where_asked():
    config = changed(training={"task": "target"}, target={"path": "embedded", "architecture": None})
    again = dataclasses.replace(config, target=dataclasses.replace(config.target, remat=True))
    for each in (config, again):
        assert task_of(each).build(each).objective.model.config.remat == each.target.remat
    mesh = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    shapes = Shapes.of(config)
    kept, less = (
        estimate(shapes, each, mesh=mesh, chip=CHIPS["H100"]).memory["activations"]
        for each in (config, again)
    )
    assert less < kept
    assert without_recomputation(again) == without_recomputation(config)


def seen(name):
    """Pairs of a token and one that it sees, from masks: of tokens that are read, and of others."""
    if name in ("mdlm", "llada", "lora"):
        return LENGTH**2, 0
    if name == "sdar":
        mask = block_diffusion_mask(LENGTH, block_size=4)
        return mask[:LENGTH].sum(), mask[LENGTH:].sum()
    prefixes = spread_anchors(BLOCKS, length=LENGTH) + 1
    masks = sum(SLOTS * (prefix + SLOTS) for prefix in prefixes)
    if name == "draft":
        return masks, block_causal_mask(LENGTH, block_size=1).sum()
    return masks, sum(prefix * (prefix + SLOTS) for prefix in prefixes)


@pytest.mark.parametrize("name", ["mdlm", "llada"])
def test_recomputation_counts_apart(name):
    """That of a model in a folder, too."""
    config = run(name)
    recomputed = dataclasses.replace(
        config, denoiser=dataclasses.replace(config.denoiser, remat=True)
    )
    assert without_recomputation(recomputed) == without_recomputation(config)
    assert least(recomputed) == least(config)
    forward = least(config)["denoiser forward"]
    assert traced(recomputed) - traced(config) == pytest.approx(forward, rel=0.35)
    mesh = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    kept, again = (
        estimate(Shapes.of(each), each, mesh=mesh, chip=CHIPS["H100"]).memory["activations"]
        for each in (config, recomputed)
    )
    assert again < kept


@pytest.mark.parametrize("name", DENOISERS)
def test_tokens_see_what_the_masks_show(name):
    config = run(name)
    read = reading(task_of(config).build(config).objective, length=LENGTH)
    pairs = [0, 0]
    for tokens in read.tokens:
        pairs[not tokens.is_read] += tokens.pairs(window=LENGTH)
    assert tuple(pairs) == seen(name)
    assert sum(pairs) <= sum(each.copies * each.tokens * each.keys for each in read.passes)


def test_a_window_hides_earlier_tokens():
    [tokens] = reading(task_of(run("llada")).build(run("llada")).objective, length=4).tokens
    index = np.arange(4)
    visible = index[:, None] - index < 2
    assert tokens.pairs(window=2) == visible.sum()


@pytest.mark.parametrize(
    "name",
    [
        *("mdlm", "draft", "sdar"),
        pytest.param("llada", marks=pytest.mark.slow("the other denoisers cover it")),
    ],
)
def test_a_step_sends_what_is_expected(name):
    plan = planned(name)
    assert sum(plan.wire.values()) <= 1.3 * sum(as_cpus_send(plan.expected_wire).values())
    for kind, expected in as_cpus_send(plan.expected_wire).items():
        assert plan.wire[kind] >= 0.95 * expected


@pytest.mark.parametrize("name", ["mdlm", "draft", "lora"])
def test_an_estimate_is_close_to_the_compiled_step(name):
    config, plan = run(name), planned(name)
    mesh = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    found = estimate(Shapes.of(config), config, mesh=mesh, chip=CHIPS["H100"])
    assert found.memory.keys() == plan.memory.keys()
    for kind in {"base", "denoiser", "logits"} & found.memory.keys():
        assert found.memory[kind] == plan.memory[kind]
    computed = found.roofline.terms["arithmetic"] * CHIPS["H100"].peak_operations
    assert computed == pytest.approx(plan.arithmetic.compiled, rel=0.15)
    assert found.memory_bytes == pytest.approx(plan.needs.memory_bytes, rel=0.5)


def test_settings_are_searched():
    found = search(run("draft"), parse_topology("8xH100"))
    assert found[0].seconds == min(each.seconds for each in found)
    # Blocks are drafted in chunks; the settings of a drafter on hidden states are left alone.
    many = dataclasses.replace(run("draft"), data=changed(data={"anchors": 16}).data)
    tried = list(variants(many, devices=8, models={}))
    assert {each.loss.chunk_blocks for each in tried} == {0, 8}
    assert {each.drafter for each in tried} == {many.drafter}
    rows = list(variants(run("llada"), devices=8, models={}))
    assert {each.loss.chunk_blocks for each in rows} == {0}
    assert {each.denoiser.remat for each in rows} == {False, True}
    longer = dataclasses.replace(run("llada"), data=changed(data={"sequence_length": 1024}).data)
    target = dataclasses.replace(
        longer, training=dataclasses.replace(longer.training, task="target")
    )
    assert {each.target.remat for each in variants(target, devices=8, models={})} == {False, True}
    tokens = {each.training.chunk_tokens for each in variants(longer, devices=8, models={})}
    assert tokens == {0, 128, 512}


@pytest.mark.parametrize("name", ["llada", "lora", "draft"])
def test_chunks_take_less_memory_and_another_head(name):
    config = run(name)
    if name == "draft":
        chunked = dataclasses.replace(config, loss=dataclasses.replace(config.loss, chunk_blocks=1))
    else:
        training = dataclasses.replace(config.training, chunk_tokens=LENGTH // BLOCKS)
        chunked = dataclasses.replace(config, training=training)
    assert without_recomputation(chunked) == without_recomputation(config)
    mesh = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    whole, parts = (
        estimate(Shapes.of(each), each, mesh=mesh, chip=CHIPS["H100"]) for each in (config, chunked)
    )
    assert parts.memory["logits"] == whole.memory["logits"] / BLOCKS
    again = (parts.roofline.terms["arithmetic"] - whole.roofline.terms["arithmetic"]) * CHIPS[
        "H100"
    ].peak_operations
    # Of a frozen head, only the hidden states have a gradient.
    head = least(config)["head"] / (2 if name == "lora" else 3)
    assert again == pytest.approx(head / 8)
