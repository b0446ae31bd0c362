"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with warm-up, cosine decay and clipping.

The learning rate is an argument of the step and not a constant in it: runs that differ only in
rate or loss weights then share one compiled program.

>>> transform, rates = make_optimizer(OptimizerConfig(warmup_fraction=0.5), steps=4)
>>> [round(float(rate), 5) for rate in rates]
[0.0005, 0.001, 0.0005, 0.0]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.config import OptimizerConfig


def make_optimizer(
    config: OptimizerConfig, *, steps: int
) -> tuple[optax.GradientTransformation, np.ndarray]:
    """The transformation of gradients and the learning rate of every step.

    Args:
      config: the settings.
      steps: length of the run.

    Returns:
      The transformation (global-norm clip, Adam, decoupled weight decay of matrices only), whose
      updates the step multiplies by minus the learning rate; and the rates, float32 [steps].
    """
    # optax needs at least one step of warm-up and one of decay.
    decay_steps = max(2, steps)
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(max(1, round(config.warmup_fraction * steps)), decay_steps - 1),
        decay_steps=decay_steps,
        end_value=config.final_learning_rate,
    )
    # Step 0 learns already: step k has the schedule's rate at k + 1.
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(1, steps + 1)), np.float32)
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=_matrices),
    )
    return transform, rates


def _matrices(params: Any) -> Any:
    """True at kernels and embeddings, False at norm scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )
