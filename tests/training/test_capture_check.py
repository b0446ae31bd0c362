"""The capture check passes a target whose states are what its head reads, and no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import GPT2Config
from jaxspec.models.gpt2 import GPT2
from jaxspec.models.transformer import Transformer
from jaxspec.training.capture_check import CHECKED_TOKENS, capture_check
from tests.training import tiny


@dataclasses.dataclass(frozen=True)
class Broken:
    """A target with one mistake in it."""

    mistake: str
    model: Transformer = tiny.TARGET

    @property
    def config(self):
        return self.model.config

    def apply(self, variables: Any, *args: Any, capture: tuple[int, ...] = (), **options: Any):
        if options.get("method") == "logits":
            return self.model.apply(variables, *args, **options)
        if self.mistake == "features of the layer before":
            capture = tuple(i - 1 for i in capture)
        output = self.model.apply(variables, *args, capture=capture, **options)
        if self.mistake == "features after the final norm":
            width = self.config.hidden_size
            features = output.features_BSE.at[..., -width:].set(output.hidden_BSD)
            return output._replace(features_BSE=features)
        if self.mistake == "another final norm":
            return output._replace(hidden_BSD=output.hidden_BSD * 1.5)
        return output


def trained_params() -> Any:
    """With a final norm that is not all ones, as after training: twice is not once then."""
    params = tiny.target_params()
    params["final_norm"]["scale"] = jnp.linspace(0.5, 2.0, tiny.ARCHITECTURE.hidden_size)
    return params


def check(model, *, params=None, tolerance=None):
    return capture_check(
        model,
        trained_params() if params is None else params,
        np.arange(4, 20, dtype=np.int32)[None],
        layer_ids=(1,),
        tolerance=tolerance,
    )


def test_a_sound_target_passes():
    assert check(tiny.TARGET) < 1e-5


def test_a_target_with_a_head_of_its_own_passes():
    config = dataclasses.replace(tiny.ARCHITECTURE, tie_embeddings=False)
    model = Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert check(model, params=params) < 1e-5


MISTAKES = ("features of the layer before", "features after the final norm", "another final norm")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused(mistake):
    said = r"Capture check failed.*differ from the target's own by.*capture_tolerance allows 0\.001"
    with pytest.raises(ValueError, match=said):
        check(Broken(mistake))


def large_logits() -> Any:
    """With logits of up to about 100, as trained models have them."""
    params = trained_params()
    return params | {"embed": {"embedding": 100 * params["embed"]["embedding"]}}


IN_BFLOAT16 = Transformer(dataclasses.replace(tiny.ARCHITECTURE, dtype="bfloat16"))


def test_logits_are_rebuilt_in_float32_of_a_target_in_bfloat16() -> None:
    """Rounded to bfloat16, they would differ by 0.25 or more."""
    assert check(IN_BFLOAT16, params=large_logits()) < 0.1


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_in_bfloat16(mistake: str) -> None:
    with pytest.raises(ValueError, match=r"capture_tolerance allows 0\.5.*--target.dtype float32"):
        check(Broken(mistake, IN_BFLOAT16), params=large_logits())


def test_nan_weights_are_refused():
    """With a vocabulary so wide that XLA's maximum loses NaN."""
    model = Transformer(dataclasses.replace(tiny.ARCHITECTURE, vocab_size=1024))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(jnp.nan)
    with pytest.raises(ValueError, match="by nan"):
        check(model, params=params)


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        pytest.param(
            "gpt_neo",
            marks=pytest.mark.slow("gpt2 has the same norms, and tasks/test_gpt2_drafter.py a run"),
        ),
    ],
)
def test_layer_norms_are_rebuilt(family):
    config = GPT2Config(
        family=family,
        vocab_size=64,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    model = GPT2(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + generator.normal(0, 0.3, leaf.shape), params)
    assert check(model, params=params) < 1e-5
    with pytest.raises(ValueError, match="Capture check failed"):
        check(Broken("another final norm", model), params=params)


def test_norms_with_an_offset_and_capped_logits_are_rebuilt() -> None:
    config = dataclasses.replace(
        tiny.ARCHITECTURE, norms="around", norm_offset=True, logit_softcap=0.5
    )
    model = Transformer(config)
    tokens_BS = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens_BS)["params"]
    params["final_norm"]["scale"] = jnp.linspace(-0.5, 1.0, config.hidden_size)
    assert check(model, params=params) < 1e-3


@dataclasses.dataclass(frozen=True)
class Recording(Broken):
    """A target that keeps the shapes of the tokens that it reads."""

    shapes: list[tuple[int, ...]] = dataclasses.field(default_factory=list, hash=False)

    def apply(self, variables: Any, *args: Any, **options: Any):
        if "method" not in options:
            self.shapes.append(args[0].shape)
        return super().apply(variables, *args, **options)


def test_the_logits_of_a_long_row_are_not_held_whole() -> None:
    model = Recording("none")
    tokens_BS = np.resize(np.arange(4, 20, dtype=np.int32), (1, 2 * CHECKED_TOKENS))
    difference = capture_check(model, trained_params(), tokens_BS, layer_ids=(1,), tolerance=1e-3)
    assert difference < 1e-5
    assert model.shapes == [(1, CHECKED_TOKENS)]
