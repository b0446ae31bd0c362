"""Refuses to train on hidden states that are not what the target's head reads.

A drafter trained on the wrong layer's states, or on states with one norm too many, looks fine in
training and is rejected in decoding. So before the first step the target's log-probabilities are
rebuilt from the captured output of its last block (norm and head are applied here, by hand) and
compared with the target's own.

>>> capture_check(model, params, tokens_BS, layer_ids=(1, 3), tolerance=1e-3)    # doctest: +SKIP
2.4e-06
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import GPT2Config, GPTNeoXConfig, LanguageModelConfig, TransformerConfig
from jaxspec.models.registry import LanguageModel
from jaxspec.ops.mesh_axes import on_mesh_of
from jaxspec.parallel.constraints import whole

CHECKED_TOKENS = 512
"""Of each row. The check holds the logits of all checked tokens twice: of a row of 4,096 tokens and
a vocabulary of 262,144, they would take 8 GiB of each device."""
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.5}
"""What is allowed if nothing else is said, by the type that the target computes in. What its norm
gives is rounded to bfloat16, and a compiler may round what goes into the norm or not; the largest
difference of all tokens counts. Where logits are as large as in trained models, a mistake gives
many times as much."""


def capture_check(
    model: LanguageModel,
    params: Any,
    tokens_BS: jax.Array | np.ndarray,
    *,
    layer_ids: tuple[int, ...],
    tolerance: float | None = None,
) -> float:
    """Largest absolute difference of log-probabilities, which must not be above `tolerance`.

    Args:
      model: the target.
      params: its parameters.
      tokens_BS: int32 [B, S], any real text; the first `CHECKED_TOKENS` of each row are read.
      layer_ids: layers that will be captured; the last block is captured as well.
      tolerance: in natural-log units; None: that of `TOLERANCES`.

    Raises:
      ValueError: the difference is above the tolerance, or not a number.
    """
    last = model.config.num_layers - 1
    capture = tuple(sorted({*layer_ids, last}))
    with on_mesh_of(params):
        checked_BS = tokens_BS[:, :CHECKED_TOKENS]
        difference = float(_difference(model, params, checked_BS, capture=capture))
    allowed = TOLERANCES[model.config.dtype] if tolerance is None else tolerance
    if not difference <= allowed:
        raise ValueError(
            f"Capture check failed: log-probabilities rebuilt from the captured output of block "
            f"{last} differ from the target's own by {difference:.3g}, but "
            f"training.capture_tolerance allows {allowed:.3g}. The captured states are not what "
            "the target's head reads, so a drafter trained on them would be rejected in decoding. "
            f"Check the checkpoint's layers and final norm.{_about_rounding(model.config)}"
        )
    return difference


def _about_rounding(config: LanguageModelConfig) -> str:
    if config.dtype == "float32":
        return ""
    return (
        " If the check passes with --target.dtype float32, this is the rounding of "
        f"{config.dtype}: allow the difference with --training.capture_tolerance."
    )


@functools.partial(jax.jit, static_argnames=("model", "capture"))
def _difference(
    model: LanguageModel, params: Any, tokens_BS: jax.Array, *, capture: tuple[int, ...]
) -> jax.Array:
    config = model.config
    output = model.apply({"params": params}, tokens_BS, capture=capture)
    own = model.apply({"params": params}, output.hidden_BSD, method="logits")
    last_BSD = output.features_BSE[..., -config.hidden_size :].astype(jnp.float32)
    normed = _final_norm(config, params["final_norm"], last_BSD)
    if config.tie_embeddings:
        table_VD = params["embed"]["embedding"]
        kernel_DV = whole(table_VD, "embed", name="embedding", dtype=config.dtype).T
    else:
        kernel_DV = whole(params["head"]["kernel"], "head", dtype=config.dtype)
    # As in the model: in float32, whatever is multiplied. bfloat16 rounds a logit of 32 by 0.06.
    rebuilt = jnp.dot(normed.astype(config.dtype), kernel_DV, preferred_element_type=jnp.float32)
    cap = config.logit_softcap if isinstance(config, TransformerConfig) else 0.0
    if cap:
        rebuilt = cap * jnp.tanh(rebuilt / cap)
    gap = jax.nn.log_softmax(own) - jax.nn.log_softmax(rebuilt)
    # On CPUs XLA's maximum over a long axis skips NaN (seen with jax 0.10, width 1024).
    return jnp.where(jnp.isnan(gap).any(), jnp.nan, jnp.abs(gap).max())


def _final_norm(
    config: LanguageModelConfig, params: Mapping[str, jax.Array], x_BSD: jax.Array
) -> jax.Array:
    scale_D = params["scale"].astype(jnp.float32)
    if isinstance(config, GPT2Config | GPTNeoXConfig):
        mean = jnp.mean(x_BSD, axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.var(x_BSD, axis=-1, keepdims=True) + config.layer_norm_eps)
        return (x_BSD - mean) / deviation * scale_D + params["bias"].astype(jnp.float32)
    if config.norm_offset:
        scale_D = 1 + scale_D
    mean_square = jnp.mean(x_BSD**2, axis=-1, keepdims=True)
    return x_BSD / jnp.sqrt(mean_square + config.rms_norm_eps) * scale_D
