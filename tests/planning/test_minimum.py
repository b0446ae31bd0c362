"""The least arithmetic of a step, against the traced program and counts by hand."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from jaxspec.config import MeshConfig
from jaxspec.parallel.mesh import make_mesh
from jaxspec.planning.minimum import least_operations, without_recomputation
from jaxspec.planning.step import TracedStep
from jaxspec.training.tasks.registry import task_of
from tests.cli.test_plan import CONFIG

ROWS, LENGTH, BLOCKS, SLOTS = 8, 16, 2, 4
HEADS, LAYERS = 2 * 32, 2
"""All heads together are 64 wide; the target has two layers and the drafter one."""


def changed(**groups):
    return dataclasses.replace(
        CONFIG,
        **{
            name: dataclasses.replace(getattr(CONFIG, name), **values)
            for name, values in groups.items()
        },
    )


def least(config):
    return least_operations(task_of(config).build(config))


def traced(config):
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    return TracedStep(config, mesh).operations


def turning(heads: int) -> int:
    """Operations of turning the heads of a token by its position, as a matrix product."""
    return 2 * 32 * 32 * heads


def test_a_traced_step_adds_what_masks_hide_and_turns_heads_by_a_product():
    """Its attention computes every score; half of them are asked for."""
    target = LAYERS * 4 * HEADS * (LENGTH**2 - LENGTH * (LENGTH + 1) / 2)
    drafter = 3 * 4 * HEADS * BLOCKS * SLOTS * LENGTH / 2
    queries, keys = turning(2), turning(1)
    slots = BLOCKS * SLOTS
    target += LAYERS * LENGTH * (queries + keys)
    drafter += 2 * (slots * (queries + keys) + LENGTH * keys)
    assert traced(CONFIG) == sum(least(CONFIG).values()) + ROWS * (target + drafter)


def test_parts_by_hand():
    parts = least(changed(data={"batch_size": 1}))
    # Queries, keys, values and output (64 x 64, 64 x 32 twice, 64 x 64), and an MLP of three.
    width = CONFIG.target.architecture.intermediate_size
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * width
    pairs = LENGTH * (LENGTH + 1) / 2
    assert parts["target forward"] == LAYERS * (2 * layer * LENGTH + 4 * HEADS * pairs)
    seen = BLOCKS * SLOTS * (LENGTH / 2 + SLOTS)
    fc, context = 2 * 128 * 64 * LENGTH, 2 * 2 * 64 * 32 * LENGTH
    forward = 2 * layer * BLOCKS * SLOTS + fc + context + 4 * HEADS * seen
    assert parts["drafter forward"] == forward
    assert parts["drafter backward"] == 2 * forward - fc
    assert parts["head"] == 2 * 2 * 64 * 64 * BLOCKS * (SLOTS - 1)


def test_layers_that_nobody_reads_do_not_count():
    both = least(CONFIG)["target forward"]
    assert least(changed(drafter={"target_layer_ids": (0,)}))["target forward"] == both / 2


def test_terms_that_compare_with_the_target_need_its_rows():
    compared = changed(loss={"extra": ("forward_kl=1.0",)}, drafter={"target_layer_ids": (0,)})
    assert least(compared)["head"] == 1.5 * least(CONFIG)["head"]
    assert least(compared)["target forward"] == least(CONFIG)["target forward"]


def test_a_target_is_trained_with_three_passes():
    config = changed(training={"task": "target"})
    parts = least(config)
    assert parts["target backward"] == 2 * parts["target forward"]
    masked = LAYERS * 3 * 4 * HEADS * (LENGTH**2 - LENGTH * (LENGTH + 1) / 2)
    turned = LAYERS * 2 * LENGTH * turning(2 + 1)
    assert traced(config) == sum(parts.values()) + ROWS * (masked + turned)


@pytest.mark.parametrize(
    "settings",
    [
        {"drafter": {"remat": True}},
        {"drafter": {"chunk_blocks": 1}},
    ],
)
def test_without_recomputation_nothing_is_computed_twice(settings):
    config = changed(**settings)
    assert traced(config) > traced(CONFIG)
    assert without_recomputation(config) == without_recomputation(CONFIG)
    assert traced(without_recomputation(config)) == traced(CONFIG)
