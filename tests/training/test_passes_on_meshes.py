"""Passes of a target outside of the step, where its weights lie on several devices of a slice.

Attention is then computed by a kernel. The compiler does not divide it: the program has to say
which rows and heads each device computes, and a kernel in any other program of several devices is
refused ("Mosaic kernels cannot be automatically partitioned").
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import MeshConfig
from jaxspec.models import transformer
from jaxspec.models.dflash import DFlash
from jaxspec.models.transformer import Transformer
from jaxspec.ops import causal_attention
from jaxspec.ops.attention_kernels import cudnn
from jaxspec.ops.mesh_axes import is_spread
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules
from jaxspec.training.capture_check import capture_check
from jaxspec.training.draft_pass import Text
from jaxspec.training.draft_record import drafts_on
from tests.training import tiny

TARGET = Transformer(dataclasses.replace(tiny.ARCHITECTURE, dtype="bfloat16"))
DRAFTER = DFlash(
    dataclasses.replace(tiny.DRAFTER_CONFIG, dtype="bfloat16", chunk_blocks=0),
    tiny.ARCHITECTURE.hidden_size,
)
MESHES = [
    pytest.param(
        MeshConfig(data=1, fsdp=8),
        marks=pytest.mark.slow("the mesh that splits heads, too, covers it"),
    ),
    MeshConfig(data=1, fsdp=4, tensor=2),
]


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of the kernel, whether the program is spread over the mesh."""
    calls: list[bool] = []

    def kernel(*heads: jax.Array, **options: Any) -> jax.Array:
        calls.append(is_spread())
        return cudnn(*heads, **options, implementation="xla")

    monkeypatch.setattr(causal_attention, "splash", kernel)
    monkeypatch.setattr(transformer, "platform", lambda: "tpu")
    return calls


def placed(params: Any, config: MeshConfig) -> Any:
    return jax.device_put(params, Rules().shardings(params, make_mesh(config)))


@pytest.mark.parametrize("config", MESHES)
def test_the_capture_check(config: MeshConfig, kernel_calls: list[bool]) -> None:
    difference = capture_check(
        TARGET,
        placed(tiny.target_params(), config),
        np.arange(4, 20, dtype=np.int32)[None],
        layer_ids=(1,),
        tolerance=0.1,
    )
    assert kernel_calls and all(kernel_calls)
    assert difference < 0.1


@pytest.mark.parametrize("config", MESHES)
def test_recorded_drafts(config: MeshConfig, kernel_calls: list[bool]) -> None:
    frozen, params = tiny.target_params(), tiny.drafter_params()
    texts = [Text(tokens=tuple(range(5, 21)), anchors=(4, 8))]

    def drafts(params: Any, frozen: Any) -> dict[str, Any]:
        [found] = drafts_on(texts, params, frozen, target=TARGET, drafter=DRAFTER)
        return found

    there = drafts(params, placed(frozen, config))
    assert kernel_calls and all(kernel_calls)
    alone = drafts(params, jax.tree.map(jnp.asarray, frozen))
    np.testing.assert_allclose(there["layers"], alone["layers"], rtol=0.02)
    np.testing.assert_allclose(
        there["log_probabilities"], alone["log_probabilities"], atol=0.05, rtol=0
    )
