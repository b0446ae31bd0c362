"""What every denoiser of a masked-diffusion language model does: tokens in, logits out.

Some of the tokens are masks. The logits are those of the clean tokens, and every position sees
every other one unless a mask says otherwise. The networks are in `jaxspec.models.dit` and
`jaxspec.models.bidirectional`; `jaxspec.models.registry.make_denoiser` chooses between them.

Dimension key: B batch rows, S tokens of a pass, I rows that are asked for, T cache slots, L layers,
D width, R key/value heads, C head width, V vocabulary.

>>> output = model.apply({"params": params}, tokens_BS)  # doctest: +SKIP
>>> output.logits_BSV.shape  # doctest: +SKIP
(1, 8, 12)
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxspec.models.cache import KVCache


class DenoiserOutput(NamedTuple):
    """What a pass returns. The compiler drops whatever the caller does not use."""

    hidden_BSD: jax.Array
    """The head's input (`logits`), at every position or at those that were asked for."""
    logits_BSV: jax.Array
    """float32, for the clean token at the same positions."""
    keys_LBRSC: jax.Array
    """This pass's keys and values, for `KVCache.write`."""
    values_LBRSC: jax.Array


class Denoiser(Protocol):
    """What training and drafting ask of a denoiser, through `nn.Module.apply`."""

    def __call__(
        self,
        tokens_BS: jax.Array,
        *,
        positions_BS: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
        mask_BSS: jax.Array | None = None,
        sigma: jax.Array | None = None,
        cache: KVCache | None = None,
        cache_mask_BST: jax.Array | None = None,
        cache_positions_BT: jax.Array | None = None,
        rows_BI: jax.Array | None = None,
        with_logits: bool = True,
    ) -> DenoiserOutput:
        """One pass.

        Args:
          tokens_BS: int32 ids, masks among them.
          positions_BS: absolute positions; None: from the cache's length (or 0) on.
          segments_BS: the document of each token; tokens see only their own document.
          mask_BSS: True where token i of this pass sees token j of it, broadcastable to [B, S, S];
            None: everywhere.
          sigma: total noise, [B] or [B, S]; None: 0. Models without time conditioning ignore it.
          cache: committed keys and values; it is read, not changed.
          cache_mask_BST: True where a token sees a slot of the cache; None: all committed slots.
          cache_positions_BT: the absolute position that each slot of the cache holds, for models
            with sliding layers; None: slot t holds position t.
          rows_BI: the positions within this pass whose logits are needed; None: all. (In a small
            model the head is a third of the work.)
          with_logits: False: no logits, [B, 0, V], for callers that run the head themselves.
        """


def visible(
    tokens_BS: jax.Array, *, segments_BS: jax.Array | None, mask_BSS: jax.Array | None
) -> jax.Array:
    """Which token sees which: `mask_BSS` (None: all) within each document, bool [B, S, S]."""
    batch, length = tokens_BS.shape
    if mask_BSS is None:
        mask_BSS = jnp.ones((1, length, length), bool)
    if segments_BS is not None:
        mask_BSS = mask_BSS & (segments_BS[:, :, None] == segments_BS[:, None, :])
    return jnp.broadcast_to(mask_BSS, (batch, length, length))


def take_rows(hidden_BSD: jax.Array, rows_BI: jax.Array | None) -> jax.Array:
    """Hidden states at the positions that were asked for, [B, I, D]."""
    if rows_BI is None:
        return hidden_BSD
    return jnp.take_along_axis(hidden_BSD, rows_BI[..., None], axis=1)
