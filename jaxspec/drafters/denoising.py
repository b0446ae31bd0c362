"""Samplers of masked diffusion, and the distributions that make their drafts exact to verify.

A sampler fills G slots in O passes of a denoiser. It consists of a plan, which says in which pass
each slot is revealed, and a loop that follows the plan: a slot is drawn from the denoiser's
distribution given everything that earlier passes revealed. The plans here never look at tokens:

- `ancestral_plan`: MDLM's reverse process (Sahoo et al. 2024, arXiv 2406.07524);
- `first_hitting_plan`: one slot at a time in random order, which is the same process in the limit
  of infinitely many steps (Zheng et al. 2024, arXiv 2409.02908);
- `left_to_right_plan`: slots in order.

Rejection rules need to know the distribution that each drafted token was drawn from. SpecDiff
(arXiv 2408.05636) leaves open what that is for tokens revealed before the last pass. `RULES` names
the exact answers:

"point_mass": no distribution, for `jaxspec.verify.verify_point_mass`. Exact for every sampler.

"last_pass": slots revealed in the row's last pass have the distribution they were drawn from, given
    the state before that pass; the others have a one-hot row. Exact: given that state, the last
    slots are independent of each other and the others are known.

"in_order": a slot has the distribution it was drawn from if no slot to its left was revealed in a
    later pass, and a one-hot row otherwise. Exact: given the state before its pass, such a slot is
    independent of all slots to its left, and verification has used only these and their rows when
    it judges the slot. This covers every slot of "last_pass", all slots of a left-to-right plan,
    and always the leftmost slot, which matters most.

Giving every slot the distribution it was drawn from ("reveal-time q") is exact for left-to-right
plans, where it equals "in_order", and biased for all others: the row of a slot tells what had been
revealed to its right, so the token there no longer has the distribution in its own row.

Dimension key: B batch rows, G drafted slots, O denoising passes, V vocabulary (mask included).

>>> slots_BG, keys_B = jnp.full((2, 4), 3), jax.random.split(jax.random.key(0), 2)
>>> plan = first_hitting_plan(keys_B, slots_BG == 3, num_passes=2)
>>> denoise = lambda tokens_BG, times_B: jnp.log(jnp.tile(jnp.array([0.5, 0.3, 0.2, 0]), (2, 4, 1)))
>>> draft = fill(denoise, slots_BG, plan, keys_B, mask_id=3, sampling=Sampling(1.0))
>>> draft.probs_BGV.shape  # for `jaxspec.verify.verify_token`
(2, 4, 4)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.ops.sampling import Sampling, at_least_float32

Rule = Literal["in_order", "last_pass", "point_mass"]
RULES: tuple[Rule, ...] = get_args(Rule)
Order = Literal["ancestral", "first_hitting", "left_to_right"]
ORDERS: tuple[Order, ...] = get_args(Order)
"""The plans below, by name."""

SMALLEST_TIME = 1e-5
"""The end of the ancestral sampler's time grid, as in the released code of MDLM."""

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""(tokens_BG, times_B) -> log p of the clean tokens [B, G, V], -inf for the mask
(`jaxspec.losses.subs_log_probs`). The callable knows the prefix; slots that must not change may
also be given unmasked. Times are in (0, 1]; without time conditioning they are ignored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising:
    """How a block is filled; see `jaxspec.config.EvaluationConfig`."""

    num_passes: int = 1
    order: Order = "ancestral"
    rule: Rule = "in_order"


class Plan(NamedTuple):
    """When each slot is revealed."""

    passes_BG: jax.Array
    """int32 in 0..O - 1; meaningless for slots that are not masked."""
    times_BO: jax.Array
    """The diffusion time that the denoiser is told in each pass."""


class Filled(NamedTuple):
    """What a sampler returns."""

    tokens_BG: jax.Array
    """int32; `INVALID` (-1) where the denoiser gave no distribution: verification then fails."""
    probs_BGV: jax.Array | None
    """The draft distribution under the rule; None: "point_mass"."""
    num_passes: jax.Array
    """int32, passes that were run; a pass in which no row reveals anything is skipped."""
    passes_B: jax.Array
    """int32, the passes in which this row reveals something."""


_PLAN_STREAM = 2**31 - 1
"""Folded into a row's key to draw its plan; passes fold in their index."""


def _plan_keys(keys_B: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, _PLAN_STREAM))(keys_B)


def _check_passes(num_passes: int) -> None:
    if num_passes < 1:
        raise ValueError(f"num_passes must be at least 1: got {num_passes}.")


def ancestral_times(num_passes: int) -> np.ndarray:
    """The time before each pass, and 0 after the last one: float64 [O + 1].

    Formula: ``linspace(1, 1e-5, O + 1)`` with its end set to 0. The last pass reveals whatever is
    left, so O passes do what takes the released code O and one more to remove the noise.
    """
    times = np.linspace(1.0, SMALLEST_TIME, num_passes + 1)
    times[-1] = 0.0
    return times


def ancestral_plan(keys_B: jax.Array, masked_BG: jax.Array, *, num_passes: int) -> Plan:
    """The reverse process of MDLM in O steps t -> s: a masked slot stays masked w.p. s / t.

    A slot's uniform number is the time at which it is revealed: it stays masked down to time s with
    probability s, whatever its neighbours do. The released sampler reuses its last prediction while
    no token changes. Here a pass that reveals nothing in any row is skipped, with or without time
    conditioning, because its prediction would not be used.

    Args:
      keys_B: one typed key per row.
      masked_BG: True in the slots to be filled.
      num_passes: O.

    Returns:
      `Plan`. Limiting case: O = 1 reveals everything at once.

    Raises:
      ValueError: no passes.

    Source: MDLM, arXiv 2406.07524, equation 6 with the log-linear schedule.
    """
    _check_passes(num_passes)
    slots = masked_BG.shape[1]
    times_O = jnp.asarray(ancestral_times(num_passes), jnp.float32)
    uniforms_BG = jax.vmap(lambda key: jax.random.uniform(key, (slots,)))(_plan_keys(keys_B))
    passes_BG = (uniforms_BG[..., None] < times_O[1:]).sum(axis=-1, dtype=jnp.int32)
    times_BO = jnp.broadcast_to(times_O[:-1], (masked_BG.shape[0], num_passes))
    return Plan(passes_BG, times_BO)


def first_hitting_plan(
    keys_B: jax.Array, masked_BG: jax.Array, *, num_passes: int | None = None
) -> Plan:
    """Masked slots one by one in random order, at the times of the continuous process.

    Formula: with n slots masked, the next one is revealed at ``t <- t u^(1 / n)`` and is any of
    them with equal probability. With O < n passes, each pass reveals an equal share of that order
    at once, and the denoiser is told the time of the first slot of the share.

    Args:
      keys_B: one typed key per row.
      masked_BG: True in the slots to be filled.
      num_passes: O; None: one per slot, which is the exact process.

    Returns:
      `Plan`.

    Raises:
      ValueError: no passes.

    Source: Zheng et al. 2024, arXiv 2409.02908, section 4 (also "parallel decoding").
    """
    slots = masked_BG.shape[1]
    num_passes = slots if num_passes is None else num_passes
    _check_passes(num_passes)

    def row(key: jax.Array, masked_G: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_order, key_times = jax.random.split(key)
        priority_G = jnp.where(masked_G, jax.random.uniform(key_order, (slots,)), jnp.inf)
        rank_G = jnp.argsort(jnp.argsort(priority_G))
        count = masked_G.sum()
        left_G = jnp.maximum(count - jnp.arange(slots), 1)
        steps_G = jnp.log1p(-jax.random.uniform(key_times, (slots,))) / left_G
        times_G = jnp.exp(jnp.cumsum(steps_G))
        first_O = _share_start(jnp.arange(num_passes), count, num_passes)
        return _share_of(rank_G, count, num_passes), times_G[jnp.minimum(first_O, slots - 1)]

    return Plan(*jax.vmap(row)(_plan_keys(keys_B), masked_BG))


def left_to_right_plan(masked_BG: jax.Array, *, num_passes: int | None = None) -> Plan:
    """Masked slots from left to right, in O shares whose sizes differ by at most one.

    Args:
      masked_BG: True in the slots to be filled.
      num_passes: O; None: one per slot, which makes the drafter autoregressive.

    Returns:
      `Plan`; the denoiser is told the share of slots that are masked.

    Raises:
      ValueError: no passes.
    """
    num_passes = masked_BG.shape[1] if num_passes is None else num_passes
    _check_passes(num_passes)
    masked_BG = masked_BG.astype(jnp.int32)
    rank_BG = jnp.cumsum(masked_BG, axis=1) - masked_BG
    count_B1 = masked_BG.sum(axis=1, keepdims=True)
    done_BO = _share_start(jnp.arange(num_passes), count_B1, num_passes) / jnp.maximum(count_B1, 1)
    return Plan(_share_of(rank_BG, count_B1, num_passes), (1 - done_BO).astype(jnp.float32))


def make_plan(order: Order, keys_B: jax.Array, masked_BG: jax.Array, *, num_passes: int) -> Plan:
    """The plan of that name, in O passes.

    Raises:
      ValueError: no passes, or an unknown order.
    """
    if order == "ancestral":
        return ancestral_plan(keys_B, masked_BG, num_passes=num_passes)
    if order == "first_hitting":
        return first_hitting_plan(keys_B, masked_BG, num_passes=num_passes)
    if order == "left_to_right":
        return left_to_right_plan(masked_BG, num_passes=num_passes)
    raise ValueError(f"order must be one of {', '.join(ORDERS)}: got {order!r}.")


def _share_start(share: jax.Array, count: jax.Array, num_shares: int) -> jax.Array:
    """The first of `count` slots in a share, rounded up, so that early shares are larger."""
    return -((-share * count) // num_shares)


def _share_of(rank: jax.Array, count: jax.Array, num_shares: int) -> jax.Array:
    """The inverse of `_share_start`: the share that the slot of this rank is in."""
    found = (rank * num_shares) // jnp.maximum(count, 1)
    return jnp.minimum(found, num_shares - 1).astype(jnp.int32)


def has_own_distribution(passes_BG: jax.Array, masked_BG: jax.Array, *, rule: Rule) -> jax.Array:
    """True for slots whose row of q is what they were drawn from; others get one-hot rows [B, G].

    Raises:
      ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}: got {rule!r}.")
    if rule == "point_mass":
        return jnp.zeros_like(masked_BG)
    # Slots that are not masked were known before the first pass.
    passes_BG = jnp.where(masked_BG, passes_BG, -1)
    if rule == "last_pass":
        latest_BG = passes_BG.max(axis=1, keepdims=True)
    else:
        latest_BG = jax.lax.cummax(passes_BG, axis=1)
    return masked_BG & (passes_BG == latest_BG)


def fill(
    denoise: Denoise,
    tokens_BG: jax.Array,
    plan: Plan,
    keys_B: jax.Array,
    *,
    mask_id: int,
    sampling: Sampling,
    rule: Rule = "in_order",
) -> Filled:
    """Fills the masked slots as planned.

    Args:
      denoise: see `Denoise`; traced once.
      tokens_BG: int32; slots that do not hold `mask_id` stay as they are.
      plan: when each slot is revealed; it must not depend on what the denoiser says.
      keys_B: one typed key per row; the plan may have been made with the same keys.
      mask_id: the mask's id.
      sampling: temperature and filters of the denoiser's distributions, and so of q. Temperature 0
        reveals the likeliest token; all rows of q are then one-hot.
      rule: which exact draft distribution is returned.

    Returns:
      `Filled`.

    Raises:
      ValueError: an unknown rule, or a plan for other slots.

    Limiting case: one pass gives independent slots, and q is their marginals.
    """

    def draw(index: jax.Array, probs_BGV: jax.Array) -> jax.Array:
        folded_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, index)
        return jax.vmap(sampling.sample)(folded_B, probs_BGV)

    return follow(
        denoise, tokens_BG, plan, draw, mask_id=mask_id, shape=sampling.probabilities, rule=rule
    )


def follow(
    denoise: Denoise,
    tokens_BG: jax.Array,
    plan: Plan,
    draw: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    mask_id: int,
    shape: Callable[[jax.Array], jax.Array],
    rule: Rule,
) -> Filled:
    """`fill` with its randomness passed in, so that tests can enumerate it.

    Args:
      denoise: see `Denoise`.
      tokens_BG: int32, masks among them.
      plan: when each slot is revealed.
      draw: (index of the pass, its distributions [B, G, V]) -> tokens [B, G].
      mask_id: the mask's id.
      shape: log p -> the distribution that tokens are drawn from.
      rule: as in `fill`.
    """
    passes_BG, times_BO = plan
    if passes_BG.shape != tokens_BG.shape:
        raise ValueError(
            f"The plan is for {passes_BG.shape} slots (rows, slots): got tokens {tokens_BG.shape}."
        )
    tokens_BG = tokens_BG.astype(jnp.int32)
    masked_BG = tokens_BG == mask_id
    own_BG = has_own_distribution(passes_BG, masked_BG, rule=rule)
    log_p = jax.eval_shape(denoise, tokens_BG, times_BO[:, 0])
    dtype = at_least_float32(log_p.dtype)
    # If no rows are returned, none are carried.
    probs_BGV = jnp.zeros(log_p.shape if rule != "point_mass" else (*tokens_BG.shape, 0), dtype)

    def one_pass(
        index: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        now_BG = masked_BG & (passes_BG == index)

        def reveal(
            tokens_BG: jax.Array, probs_BGV: jax.Array, count: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            times_B = jax.lax.dynamic_index_in_dim(times_BO, index, axis=1, keepdims=False)
            drawn_from_BGV = shape(denoise(tokens_BG, times_B))
            tokens_BG = jnp.where(now_BG, draw(index, drawn_from_BGV), tokens_BG)
            if rule != "point_mass":
                probs_BGV = jnp.where((now_BG & own_BG)[..., None], drawn_from_BGV, probs_BGV)
            return tokens_BG, probs_BGV, count + 1

        return jax.lax.cond(now_BG.any(), reveal, lambda *same: same, *carry)

    total = times_BO.shape[1]
    used_BO = (masked_BG[..., None] & (passes_BG[..., None] == jnp.arange(total))).any(axis=1)
    passes_B = used_BO.sum(axis=1, dtype=jnp.int32)
    tokens_BG, probs_BGV, num_passes = jax.lax.fori_loop(
        0, total, one_pass, (tokens_BG, probs_BGV, jnp.int32(0))
    )
    if rule == "point_mass":
        return Filled(tokens_BG, None, num_passes, passes_B)
    one_hot_BGV = jax.nn.one_hot(tokens_BG, log_p.shape[-1], dtype=dtype)
    probs_BGV = jnp.where(own_BG[..., None], probs_BGV, one_hot_BGV)
    return Filled(tokens_BG, probs_BGV, num_passes, passes_B)
