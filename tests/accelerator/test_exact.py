"""An accelerator computes in float32 what a CPU computes: tokens, logits, training steps.

TF32 and bfloat16 products are off by 1e-3 and more: no tolerance here lets them pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.ops.precision import exact_products
from tests.decoding import tiny
from tests.training import golden

KINDS = ("autoregressive", "speculative", "tree")


def on(device: jax.Device, call: Callable[[], Any]) -> Any:
    """What a call gives on a device, brought to the host."""
    with jax.default_device(device):
        return jax.device_get(call())


def moved(tree: Any, device: jax.Device) -> Any:
    """The arrays of a tree on a device."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), device), tree)


def test_the_device(device, capsys):
    with capsys.disabled():
        print(f"\njax {jax.__version__} on {device.device_kind} ({device.platform})")
    total = on(device, lambda: jnp.arange(10).sum())
    assert total == 45


def test_products_are_full(device):
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((256, 256)) for _ in range(2))
    with exact_products("float32"):
        found = on(device, lambda: jnp.float32(left) @ jnp.float32(right))
    assert np.abs(found - left @ right).max() < 1e-4


@pytest.mark.parametrize("number", range(3), ids=KINDS)
def test_decoded_tokens_are_those_of_the_cpu(device, cpu, number):
    strategy, params = tiny.strategies()[number]
    (alone, target), *_ = tiny.strategies()
    found = [
        on(place, lambda place=place: tiny.decode(strategy, moved(params, place)))
        for place in (device, cpu)
    ]
    assert found[0] == found[1]
    own = on(device, lambda: tiny.decode(alone, moved(target, device)))
    assert [each.tokens for each in found[0]] == [each.tokens for each in own]


def test_logits_are_those_of_the_cpu(device, cpu):
    model, params = tiny.target()
    text = jnp.asarray([tiny.PROMPTS[3]])

    @jax.jit
    def logits_of(params, text):
        with exact_products("float32"):
            output = model.apply({"params": params}, text)
            return model.apply({"params": params}, output.hidden_BSD, method="logits")

    found, expected = (
        on(place, lambda place=place: logits_of(moved(params, place), moved(text, place)))
        for place in (device, cpu)
    )
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_training_steps_are_those_of_the_cpu(device):
    """The stored trace is that of a CPU."""
    stored = json.loads(golden.FILE.read_text(encoding="utf-8"))
    with exact_products("float32"):
        trace = on(device, lambda: golden.drafter_trace(golden.compiled_step()))
    for expected, found in zip(stored["steps"], trace, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
