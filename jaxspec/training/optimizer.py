"""AdamW or Muon, with warm-up, cosine decay and clipping.

AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101. Muon (Jordan 2024,
https://kellerjordan.github.io/posts/muon) turns the running mean of a matrix's gradient into the
nearest matrix with orthogonal rows or columns. Its updates are scaled as in Liu et al. 2025, arXiv
2502.16982, so that their size is that of AdamW's: rates and weight decay need not be tuned anew.

The learning rate is an argument of the step and not a constant in it: runs that differ only in
rate or loss weights then share one compiled program.

>>> transform, rates = make_optimizer(OptimizerConfig(warmup_fraction=0.5), steps=4)
>>> [round(float(rate), 5) for rate in rates]
[0.0005, 0.001, 0.0005, 0.0]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from jaxspec.config import OptimizerConfig
from jaxspec.training.lora import LOW_RANK

_ADAM_RMS = 0.2
"""Root mean square of AdamW's updates, as arXiv 2502.16982 measured it (sec. 2.2)."""
_DEFAULT_RATES: dict[str, Any] = {
    name: getattr(OptimizerConfig(), name)
    for name in ("schedule", "learning_rate", "final_learning_rate", "warmup_fraction")
}
"""Settings that the transformation does not depend on."""
_ENDS = ("embed", "head", "positions")
"""Modules whose matrices are looked up or give logits: Muon is not for them."""


def make_optimizer(
    config: OptimizerConfig, *, steps: int, schedule_from: int = 0
) -> tuple[optax.GradientTransformation, np.ndarray]:
    """The transformation of gradients and the learning rate of every step.

    Args:
      config: the settings.
      steps: length of the run.
      schedule_from: the step at which the schedule starts; the rates before it are 0.

    Returns:
      The transformation (global-norm clip, Adam or Muon, decoupled weight decay of matrices only),
      whose updates the step multiplies by minus the learning rate; and the rates, float32 [steps].
    """
    length = steps - schedule_from
    warmup = warmup_steps(config.warmup_fraction, length)
    # optax needs at least one step of decay.
    decay_steps = max(2, length)
    if config.schedule == "constant":
        schedule = optax.schedules.warmup_constant_schedule(0.0, config.learning_rate, warmup)
    else:
        schedule = optax.schedules.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=config.learning_rate,
            warmup_steps=min(warmup, decay_steps - 1),
            decay_steps=decay_steps,
            end_value=config.final_learning_rate,
        )
    # Step 0 learns already: step k has the schedule's rate at k + 1.
    rates = np.zeros(steps, np.float32)
    rates[schedule_from:] = jax.jit(jax.vmap(schedule))(np.arange(1, length + 1))
    return _transform(dataclasses.replace(config, **_DEFAULT_RATES)), rates


def schedule_warnings(config: OptimizerConfig) -> list[str]:
    """Says that a setting of the schedule has no effect.

    >>> schedule_warnings(OptimizerConfig(schedule="constant", final_learning_rate=1e-5))
    ["Warning: optimizer.final_learning_rate is 1e-05, but optimizer.schedule is 'constant': the \
rate stays at its peak, 0.001. Leave it out, or choose the schedule 'cosine'."]
    """
    if config.schedule == "cosine" or not config.final_learning_rate:
        return []
    return [
        f"Warning: optimizer.final_learning_rate is {config.final_learning_rate:g}, but "
        f"optimizer.schedule is {config.schedule!r}: the rate stays at its peak, "
        f"{config.learning_rate:g}. Leave it out, or choose the schedule 'cosine'."
    ]


def warmup_steps(fraction: float, steps: int) -> int:
    """The number of steps over which the learning rate rises."""
    return max(1, round(fraction * steps))


@functools.lru_cache(maxsize=8)
def _transform(config: OptimizerConfig) -> optax.GradientTransformation:
    """The same object for the same settings: a step that is compiled for it can be used again."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        _scale_by(config),
        optax.add_decayed_weights(config.weight_decay, mask=_matrices),
    )


def _scale_by(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.name == "adamw":
        return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    return optax.contrib.muon(
        learning_rate=-1.0,  # The step multiplies by minus the rate.
        beta=config.momentum,
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=_muon_axes,
        consistent_rms=_ADAM_RMS,
    )


def _muon_axes(params: Any) -> Any:
    """Inputs and outputs of each inner matrix, None for what Adam is for.

    Axes before the last two are layers and experts: each of their matrices is a matrix by itself.
    """

    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        is_inner = names[-1] == "kernel" or names[-1] in LOW_RANK
        if not is_inner or set(names) & set(_ENDS) or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _matrices(params: Any) -> Any:
    """True at kernels, embeddings and updates of low rank, False at norm scales and biases."""
    names = ("kernel", "embedding", *LOW_RANK)
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)
