"""float32 means float32: every product of a decoding program asks for full precision."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxspec.decoding import Adaptive, Autoregressive
from jaxspec.decoding.target_alone import TargetAlone
from jaxspec.ops.precision import exact_products, exact_program, products
from tests.decoding import tiny

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution)[^\n]*")
FULL = "precision = [HIGHEST, HIGHEST]"


def products_in(program) -> list[str]:
    """The lines of a lowered program that multiply matrices."""
    return PRODUCT.findall(program.as_text())


def lowered(strategy, params):
    """The prefill and the loop of a strategy, as programs that are not compiled."""
    prompts, capacity = tiny.batch()
    kind = type(strategy)
    state = jax.eval_shape(lambda p: kind.start(strategy, p, prompts, capacity=capacity), params)
    return (
        kind.start.lower(strategy, params, prompts, capacity=capacity),
        kind.run.lower(strategy, params, state),
    )


@pytest.mark.parametrize("number", range(3), ids=["autoregressive", "speculative", "tree"])
def test_every_product_of_a_float32_decode_is_full(number):
    for program in lowered(*tiny.strategies()[number]):
        found = products_in(program)
        assert found
        assert [line for line in found if FULL not in line] == []


def test_nor_is_a_product_rounded_while_drafting_is_off():
    speculative, params = tiny.strategies()[1]
    one = dataclasses.replace(speculative.proposer, block_size=1)
    off = Adaptive([dataclasses.replace(speculative, proposer=one), speculative]).strategies[0]
    assert isinstance(off, TargetAlone)
    found = products_in(lowered(off, params)[1])
    assert found and all(FULL in line for line in found)


def test_bfloat16_keeps_the_setting_of_jax():
    model, params = tiny.target(dataclasses.replace(tiny.ARCHITECTURE, dtype="bfloat16"))
    (start, run) = lowered(Autoregressive(model, tiny.RULES), params)
    # Rotations of positions are always in full.
    assert any(FULL not in line for line in products_in(start))
    assert any(FULL not in line for line in products_in(run))


def test_the_callers_setting_does_not_reach_a_float32_program():
    class Model:
        config = tiny.ARCHITECTURE

    class Strategy:
        model = Model()

    @exact_program()
    def product(strategy, x):
        return x @ x

    with jax.default_matmul_precision("bfloat16"):
        (line,) = products_in(product.lower(Strategy(), jnp.ones((4, 4))))
        assert FULL in line
        (line,) = products_in(jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))))
        assert FULL not in line


def test_a_setting_is_only_for_what_is_inside():
    before = jax.config.jax_default_matmul_precision
    with exact_products("bfloat16"):
        assert jax.config.jax_default_matmul_precision == before
    with exact_products("float32"):
        assert jax.config.jax_default_matmul_precision == "highest"
    assert jax.config.jax_default_matmul_precision == before


def test_reports_say_which_it_was():
    assert "'highest'" in products("float32")
    assert "round differently" in products("bfloat16")


def test_passes_of_more_rows_give_the_same_answers():
    (alone, params), *_ = tiny.strategies()
    wide = dataclasses.replace(alone, pass_rows=4)
    assert tiny.decode(wide, params) == tiny.decode(alone, params)
    # They have the shape of a verification: logits are computed of the first row only.
    _, run = lowered(wide, params)
    prompts = len(tiny.PROMPTS)
    hidden = tiny.ARCHITECTURE.hidden_size
    assert f"tensor<{prompts}x4x{hidden}xf32>" in run.as_text()
