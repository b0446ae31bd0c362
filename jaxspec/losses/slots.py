"""What the losses need to know about each slot, without its row of logits.

Every loss here is a function of a few numbers per slot: the label's log-probability, whether the
label is the argmax and, for distillation, how the drafter's row compares with the target's. Because
these are enough, logits can be computed and dropped a few blocks at a time
(`jaxspec.losses.chunked`).

Dimension key: N blocks (any leading dimensions), G drafted slots of a block, V vocabulary.

>>> import jax.numpy as jnp
>>> slot_statistics(jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), jnp.int32)).log_p_NG.shape
(2, 3)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.losses.cross_entropy import label_statistics
from jaxspec.ops.array_dataclass import array_dataclass


@array_dataclass
class SlotStatistics:
    """The numbers per slot that all loss terms and metrics are computed from.

    p is the target's distribution, q the drafter's.
    """

    log_p_NG: jax.Array
    """float32 log-probability of the label under the drafter."""
    correct_NG: jax.Array
    """bool, whether the drafter's argmax is the label."""
    overlap_NG: jax.Array | None = None
    """float32 ``sum_v min(p_v, q_v)``: the chance that a sampled draft is accepted. None without
    target logits."""
    kl_NG: jax.Array | None = None
    """float32 ``KL(p || q)``. None without target logits."""


def slot_statistics(
    logits_NGV: jax.Array,
    labels_NG: jax.Array,
    *,
    target_logits_NGV: jax.Array | None = None,
) -> SlotStatistics:
    """Reduces rows of logits to `SlotStatistics`.

    Formula: ``log_p = log softmax(logits)[label]``, ``correct = argmax(logits) == label``,
    ``overlap = sum_v min(p_v, q_v)``, ``kl = sum_v p_v (log p_v - log q_v)``. An id that the
    drafter's logits forbid (-inf) is removed from the target's distribution for ``kl``, which
    would otherwise be infinite; ``overlap`` keeps it, since the target may still emit it.

    Args:
      logits_NGV: [..., G, V] of the drafter.
      labels_NG: [..., G] integer ids.
      target_logits_NGV: [..., G, V] of the target in the same slots; no gradient flows into them.

    Returns:
      The statistics; ``overlap_NG`` and ``kl_NG`` are None without target logits.

    Raises:
      ValueError: shapes that do not fit.

    Limiting case: equal logits give overlap 1 and kl 0.
    """
    log_p_NG, correct_NG = label_statistics(logits_NGV, labels_NG)
    if target_logits_NGV is None:
        return SlotStatistics(log_p_NG=log_p_NG, correct_NG=correct_NG)
    if target_logits_NGV.shape != logits_NGV.shape:
        raise ValueError(
            "target_logits_NGV must have the shape of logits_NGV: got "
            f"{target_logits_NGV.shape} and {logits_NGV.shape}. Drafter and target must share "
            "one vocabulary."
        )
    overlap_NG, kl_NG = _divergences(logits_NGV, target_logits_NGV)
    return SlotStatistics(
        log_p_NG=log_p_NG, correct_NG=correct_NG, overlap_NG=overlap_NG, kl_NG=kl_NG
    )


def _divergences(
    logits_NGV: jax.Array, target_logits_NGV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # float32: overlaps and divergences are small differences of long sums.
    logits_NGV = logits_NGV.astype(jnp.float32)
    target_logits_NGV = jax.lax.stop_gradient(target_logits_NGV.astype(jnp.float32))
    log_q_NGV = jax.nn.log_softmax(logits_NGV)
    overlap_NG = jnp.sum(jnp.minimum(jnp.exp(log_q_NGV), jax.nn.softmax(target_logits_NGV)), -1)

    allowed_NGV = logits_NGV > -jnp.inf
    log_p_NGV = jax.nn.log_softmax(jnp.where(allowed_NGV, target_logits_NGV, -jnp.inf))
    # Entries with p = 0 add nothing; both factors are replaced so that neither the value nor the
    # gradient meets 0 * inf.
    present_NGV = allowed_NGV & (log_p_NGV > -jnp.inf)
    gap_NGV = jnp.where(present_NGV, log_p_NGV, 0.0) - jnp.where(present_NGV, log_q_NGV, 0.0)
    kl_NG = jnp.sum(jnp.exp(log_p_NGV) * gap_NGV, axis=-1)
    return overlap_NG, kl_NG
