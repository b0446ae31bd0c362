"""The arrays handed to a rejection rule, checked, and read one row at a time.

Dimension key: B batch rows, G drafted slots, H = G + 1 verified rows (row h follows the first h
drafted tokens), I rows asked for (the draft's G or the target's H), V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxspec.ops.sampling import at_least_float32, is_distribution, signed_ids


@dataclasses.dataclass(frozen=True)
class Rows:
    """Distributions that are scaled to sum to one when they are read.

    The division is part of the gather or reduction that reads them: a scaled copy would be as large
    as the logits. Rows that are not needed, or that sum to 0, read as zeros.
    """

    weights_BIV: jax.Array
    totals_BI: jax.Array
    needed_BI: jax.Array

    @classmethod
    def create(cls, weights_BIV: jax.Array, *, needed_BI: jax.Array, dtype: jnp.dtype) -> Rows:
        """Converts weights of any float type to `dtype`."""
        weights_BIV = weights_BIV.astype(dtype)
        return cls(weights_BIV, weights_BIV.sum(axis=2), needed_BI)

    def at(self, index_B: jax.Array) -> jax.Array:
        """Row `index_B` of each batch row, [B, V]; zeros for an index past the last row."""
        index_B1 = index_B[:, None]
        weights_BV = _take(self.weights_BIV, index_B1[..., None])[:, 0]
        total_B1, needed_B1 = _take(self.totals_BI, index_B1), _take(self.needed_BI, index_B1)
        return _scaled(weights_BV, total_B1, needed_B1)

    def of_tokens(self, tokens_BG: jax.Array) -> jax.Array:
        """The probability of token g in row g, [B, G]."""
        slots = tokens_BG.shape[1]
        weights_BG = _take(self.weights_BIV[:, :slots], tokens_BG[..., None], axis=2)[..., 0]
        return _scaled(weights_BG, self.totals_BI[:, :slots], self.needed_BI[:, :slots])

    def factors_BI(self) -> jax.Array:
        """What to scale each row by, for a reduction over all of them; 0 for rows that sum to 0.

        Rows that are not needed are scaled too, and may hold anything.
        """
        present_BI = self.totals_BI > 0
        return jnp.where(present_BI, 1 / jnp.where(present_BI, self.totals_BI, 1), 0)


def _scaled(weights: jax.Array, total: jax.Array, needed: jax.Array) -> jax.Array:
    present = needed & (total > 0)
    return jnp.where(present, weights / jnp.where(present, total, 1), 0)


def _take(values: jax.Array, index: jax.Array, *, axis: int = 1) -> jax.Array:
    # By default jax fills with NaN. `at` needs zeros after the last row.
    return jnp.take_along_axis(values, index, axis=axis, mode="fill", fill_value=0)


@dataclasses.dataclass(frozen=True)
class Block:
    """A drafted block with its distributions, and which rows of it can be judged."""

    tokens_BG: jax.Array
    drafted_BG: jax.Array
    """True in slots that hold a drafted token."""
    target: Rows
    draft: Rows
    """The draft's rows; with an empty vocabulary (V = 0) for a point mass."""
    valid_B: jax.Array


def check_block(
    draft_BG: jax.Array,
    draft_probs_BGV: jax.Array | None,
    target_probs_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None,
) -> Block:
    """Checks what a sampled rule is given: shapes and types here, values in `Block.valid_B`."""
    draft_BG = signed_ids(jnp.asarray(draft_BG))
    target_probs_BHV = jnp.asarray(target_probs_BHV)
    drafted_BG = check_draft(
        draft_BG, target_probs_BHV, name="target_probs_BHV", num_drafted_B=num_drafted_B
    )
    if draft_probs_BGV is None:
        draft_probs_BGV = jnp.zeros((*draft_BG.shape, 0), jnp.float32)
    else:
        draft_probs_BGV = jnp.asarray(draft_probs_BGV)
        expected = (*draft_BG.shape, target_probs_BHV.shape[2])
        if draft_probs_BGV.shape != expected or not is_float(draft_probs_BGV):
            raise ValueError(
                f"draft_probs_BGV must hold floats of shape {expected}, the distribution that each "
                f"drafted token was sampled from: got {draft_probs_BGV.dtype} "
                f"{draft_probs_BGV.shape}."
            )
    dtype = at_least_float32(jnp.promote_types(target_probs_BHV.dtype, draft_probs_BGV.dtype))
    target = Rows.create(target_probs_BHV, needed_BI=needed_rows(drafted_BG), dtype=dtype)
    draft = Rows.create(draft_probs_BGV, needed_BI=drafted_BG, dtype=dtype)
    # A draft row of zeros passes: it says nothing about the token, as an underflow does.
    draft_ok_BG = jnp.isfinite(draft.totals_BI) & (draft.weights_BIV.min(axis=2, initial=0) >= 0)
    ids_ok_BG = known_ids(draft_BG, vocabulary=target_probs_BHV.shape[2])
    target_ok_BH = is_distribution(target.weights_BIV, total=target.totals_BI)
    valid_B = (target_ok_BH | ~target.needed_BI).all(axis=1)
    valid_B &= ((draft_ok_BG & ids_ok_BG) | ~drafted_BG).all(axis=1)
    return Block(draft_BG, drafted_BG, target, draft, valid_B)


def check_draft(
    draft_BG: jax.Array, rows_BHV: jax.Array, *, name: str, num_drafted_B: jax.Array | None
) -> jax.Array:
    """Raises ValueError for wrong shapes or types; returns bool [B, G], True in drafted slots."""
    if draft_BG.ndim != 2 or not jnp.issubdtype(draft_BG.dtype, jnp.integer):
        raise ValueError(
            "draft_BG must hold integer token ids [B, G], the anchor left out: got "
            f"{draft_BG.dtype} {draft_BG.shape}."
        )
    batch, slots = draft_BG.shape
    shape = rows_BHV.shape
    if len(shape) != 3 or shape[:2] != (batch, slots + 1) or shape[2] < 1 or not is_float(rows_BHV):
        raise ValueError(
            f"{name} must hold floats [{batch}, {slots + 1}, V], a row for each of the {slots} "
            f"drafted tokens and one after the last: got {rows_BHV.dtype} {shape}."
        )
    if num_drafted_B is None:
        return jnp.ones(draft_BG.shape, bool)
    num_drafted_B = jnp.asarray(num_drafted_B)
    if num_drafted_B.shape != (batch,) or not jnp.issubdtype(num_drafted_B.dtype, jnp.integer):
        raise ValueError(
            f"num_drafted_B must hold integers of shape ({batch},), how many tokens each row "
            f"drafted: got {num_drafted_B.dtype} {num_drafted_B.shape}."
        )
    return jnp.arange(slots) < num_drafted_B[:, None]


def needed_rows(drafted_BG: jax.Array) -> jax.Array:
    """True at the target's rows in use [B, H]: the one after the last drafted token included."""
    return jnp.pad(drafted_BG, ((0, 0), (1, 0)), constant_values=True)


def known_ids(draft_BG: jax.Array, *, vocabulary: int) -> jax.Array:
    """True where the id [B, G] is in 0..vocabulary - 1: a gather would not complain."""
    return (draft_BG >= 0) & (draft_BG < vocabulary)


def is_float(array: jax.Array) -> bool:
    """Whether the array holds floating-point numbers of any width."""
    return bool(jnp.issubdtype(array.dtype, jnp.floating))
