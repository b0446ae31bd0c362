"""One step: accumulation, steps that are not finite, mixed precision, a stored trace."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxspec.config import MeshConfig
from jaxspec.losses import LossWeights, ratio
from jaxspec.models.dflash import DFlash
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.step import spread
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper, make_body
from tests.training import golden, tiny


@pytest.fixture(scope="module")
def step():
    return golden.compiled_step()


def test_the_stored_trace(step):
    """Computed with float32 on one device; CPUs differ in the last bits, so not bit for bit."""
    stored = json.loads(golden.FILE.read_text())
    assert stored["command"] == golden.COMMAND
    for expected, got in zip(stored["steps"], golden.drafter_trace(step), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def leaves_equal(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_step_that_is_not_finite_changes_nothing(step):
    _, state, hyper = tiny.start()
    frozen = tiny.target_params()
    broken = jax.tree.map(jnp.copy, frozen)
    broken["embed"]["embedding"] = broken["embed"]["embedding"].at[5].set(jnp.nan)

    first, metrics = step(state, frozen, tiny.batch(), hyper)
    assert int(first.bad_step) == -1
    assert not leaves_equal(first.params, state.params)
    assert np.isfinite(float(metrics["loss"][0]))

    bad, metrics = step(first, broken, tiny.batch(), hyper)
    assert np.isnan(float(metrics["loss"][0]))
    assert (int(bad.step), int(bad.bad_step)) == (2, 1), "the second step, counted from 0"
    assert leaves_equal((bad.params, bad.opt_state), (first.params, first.opt_state))

    # A good batch afterwards does not hide it.
    later, _ = step(bad, frozen, tiny.batch(), hyper)
    assert (int(later.step), int(later.bad_step)) == (3, 1)
    assert leaves_equal((later.params, later.opt_state), (first.params, first.opt_state))


def test_a_learning_rate_beyond_float32_is_no_step(step):
    _, state, hyper = tiny.start()
    hyper = hyper.replace(learning_rate=jnp.float32(jnp.inf))
    new, metrics = step(state, tiny.target_params(), tiny.batch(), hyper)
    assert np.isfinite(float(metrics["loss"][0]))
    assert int(new.bad_step) == 0
    assert leaves_equal(new.params, state.params)


def uneven_batch() -> dict[str, np.ndarray]:
    """Every other row has next to nothing to learn: two parts of very different weight."""
    batch = tiny.batch()
    batch["loss_mask"] = batch["segments"] > 0
    batch["loss_mask"][1::2] = False
    batch["loss_mask"][1::2, 3:6] = True
    return batch


@pytest.fixture(scope="module")
def undivided(step):
    """Adam's mean gradient and the metrics of one step over the whole batch, without focal."""
    _, state, hyper = tiny.start()
    new, metrics = step(state, tiny.target_params(), uneven_batch(), without_focal(hyper))
    return jax.device_get((new.opt_state[1].mu, metrics))


def without_focal(hyper: Hyper) -> Hyper:
    """Its count is each part's own."""
    loss = dataclasses.replace(tiny.LOSS, focal=0.0)
    return hyper.replace(weights=LossWeights.from_config(loss))


def test_unequal_parts_add_up_to_the_batch(undivided):
    _, _, mask_BNG = tiny.objective().blocks(uneven_batch(), jax.random.key(7))
    slots_B = np.asarray(mask_BNG).sum((1, 2))
    assert slots_B[0::2].sum() > 6 * slots_B[1::2].sum() > 0
    _, state, hyper = tiny.start()
    in_parts = golden.compiled_step(gradient_accumulation=2)
    new, metrics = in_parts(state, tiny.target_params(), uneven_batch(), without_focal(hyper))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5),
        jax.device_get((new.opt_state[1].mu, metrics)),
        undivided,
    )


class Line:
    """The smallest objective with both kinds of count: w x, and y as the label."""

    runs_own_code = False

    def __call__(self, params, frozen, batch, key, weights):
        gap_B = params["w"] * batch["x"] - batch["y"]
        positive_B = params["w"] * batch["x"] > 0
        terms = {
            "by_mask": ((batch["mask"] * gap_B**2).sum(), batch["mask"].sum()),
            "by_prediction": ((positive_B * gap_B).sum(), positive_B.sum().astype(jnp.float32)),
        }
        return terms, {"rows": (gap_B.sum(), jnp.float32(len(gap_B)))}

    def counts(self, batch, key, weights):
        return {"by_mask": batch["mask"].sum()}

    def total(self, terms, weights):
        return ratio(*terms["by_mask"]) + 10 * ratio(*terms["by_prediction"])


@pytest.mark.parametrize(
    ("path", "devices"), [("jit", 1), ("jit", 4), ("shard_map", 4), ("pmap", 4), ("pmap", 2)]
)
def test_parts_by_hand(path, devices):
    x = np.array([1, -2, 3, 4, -5, 6, 7, 8, 9, -10, 11, 12, 13, 14, -15, 16], np.float32)
    batch = {"x": x, "y": np.arange(16, dtype=np.float32), "mask": np.ones(16, np.float32)}
    batch["mask"][1::2] = 0  # with two parts on one device, all of the second
    batch["mask"][3] = 1
    w = 0.5
    gap = w * x - batch["y"]
    # Rows of a part: every second row of each device's rows, and so of the whole.
    parts = [np.arange(16) % 2 == part for part in (0, 1)]
    positive = [(w * x > 0) & part for part in parts]
    expected = (batch["mask"] * 2 * gap * x).sum() / batch["mask"].sum()
    expected += 10 * np.mean([x[rows].sum() / rows.sum() for rows in positive])
    value = (batch["mask"] * gap**2).sum() / batch["mask"].sum()
    value += 10 * np.mean([gap[rows].sum() / rows.sum() for rows in positive])

    plain = optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, s))
    body = make_body(Line(), plain, gradient_accumulation=2)
    mesh = make_mesh(MeshConfig(path=path), devices=jax.devices()[:devices])
    state = TrainState.create({"w": jnp.float32(w)}, plain)
    _, _, hyper = tiny.start()
    hyper = hyper.replace(learning_rate=jnp.float32(1))
    new, metrics = spread(body, mesh=mesh, path=path)(state, {}, batch, hyper)
    np.testing.assert_allclose(w - float(new.params["w"]), expected, rtol=1e-6)
    np.testing.assert_allclose(float(metrics["loss"][0]), value, rtol=1e-6)
    np.testing.assert_allclose(metrics["rows"], (gap.sum(), 16), rtol=1e-6)


def test_bfloat16_compute_trains_float32_weights():
    config = dataclasses.replace(tiny.DRAFTER_CONFIG, dtype="bfloat16", param_dtype="float32")
    drafter = DFlash(config, tiny.ARCHITECTURE.hidden_size)
    objective = dataclasses.replace(tiny.objective(), drafter=drafter)
    step = golden.compiled_step(objective)
    _, state, hyper = tiny.start()
    assert objective.drafter.apply(
        {"params": state.params}, jnp.zeros((1, 2, 64)), jnp.zeros((1, 2), jnp.int32),
        method="context",
    )[0].dtype == jnp.bfloat16  # fmt: skip
    frozen, batch = tiny.target_params(), tiny.batch()
    losses = []
    hyper = hyper.replace(learning_rate=jnp.float32(1e-2))
    for _ in range(30):
        state, metrics = step(state, frozen, batch, hyper)
        losses.append(float(metrics["loss"][0]))
    assert int(state.bad_step) == -1
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
