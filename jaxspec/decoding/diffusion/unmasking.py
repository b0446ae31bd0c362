"""Unmasking: which masks of a block are revealed after a pass, and as which tokens.

A pass gives logits for every position of a block. Each masked position gets a candidate (the
argmax, or a draw) and a confidence, which is the candidate's probability before temperature. The
most confident candidates are revealed. A rule decides how many:

- `Scheduled`: a fixed share per step (LLaDA, Nie et al. 2025, arXiv 2502.09992, "low confidence
  remasking"; a revealed token is never masked again);
- `Threshold`: all that are confident enough, and always the best one (Fast-dLLM, Wu et al. 2025,
  arXiv 2505.22618);
- `Factor`: as many as can be revealed together at a bounded risk (Fast-dLLM, theorem 1).

`Unmasker.unmask` depends on nothing but logits, tokens, step and keys. A draw depends on its row's
key, on the step within the block and on its absolute position, never on how the pass was batched:
two decoders that reach the same state at the same step draw the same tokens. This is why a drafted
state can be replayed.

Dimension key: B batch rows, P positions of a block, V vocabulary.

>>> unmasker = Unmasker(Threshold(0.9), mask_id=126336)
>>> unmasked = unmasker.unmask(  # doctest: +SKIP
...     logits_BPV, block_BP, masked_BP=block_BP == 126336, positions_BP=positions_BP,
...     step_B=step_B, initial_B=masks_B, keys_B=keys_B)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxspec.config import DiffusionEvaluationConfig
from jaxspec.names import did_you_mean
from jaxspec.ops.sampling import GREEDY, Sampling, at_least_float32, largest_index
from jaxspec.ops.suppression import suppress


class Unmasking(Protocol):
    """How many candidates a step reveals. A rule is a frozen dataclass of plain numbers."""

    name: ClassVar[str]
    """What users and draft graphs call the rule."""

    def count(
        self, confidence_BP: jax.Array, *, initial_B: jax.Array, step_B: jax.Array
    ) -> jax.Array:
        """The number for each row, int32 [B].

        The caller limits it to between 1 and the number of masks left.

        Args:
          confidence_BP: of the candidates, in falling order; -inf after the last one.
          initial_B: masks that the block began with.
          step_B: steps that the row has taken in this block.
        """


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """The masks of a block in `steps` equal shares; the first shares are larger by one if need be.

    Raises:
      ValueError: no steps.

    Source: LLaDA, arXiv 2502.09992, algorithm 5 and its released `get_num_transfer_tokens`.
    Limiting case: as many steps as masks reveal one token per step.
    """

    name: ClassVar[str] = "scheduled"
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1 per block: got {self.steps}.")

    def count(
        self, confidence_BP: jax.Array, *, initial_B: jax.Array, step_B: jax.Array
    ) -> jax.Array:
        """See `Unmasking`."""
        return initial_B // self.steps + (step_B < initial_B % self.steps)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Every candidate with a confidence of at least `threshold`.

    Raises:
      ValueError: a threshold outside (0, 1].

    Source: Fast-dLLM, arXiv 2505.22618, section 3.3.
    Limiting case: 1 reveals one token per step, unless candidates are certain.
    """

    name: ClassVar[str] = "threshold"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1]: got {self.threshold}.")
        # 1 and 1.0 are the same rule, in files too.
        object.__setattr__(self, "threshold", float(self.threshold))

    def count(
        self, confidence_BP: jax.Array, *, initial_B: jax.Array, step_B: jax.Array
    ) -> jax.Array:
        """See `Unmasking`."""
        return (confidence_BP >= self.threshold).sum(axis=-1, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Factor:
    """The largest n whose n-th confidence is at least ``1 - factor / (n + 1)``.

    The bar rises with n and the confidences fall, so all candidates before the n-th pass too.

    Raises:
      ValueError: a factor that is not positive.

    Source: Fast-dLLM, arXiv 2505.22618, section 3.3 ("factor-based parallel decoding").
    Limiting case: a factor near 0 reveals one token per step.
    """

    name: ClassVar[str] = "factor"
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor must be positive: got {self.factor}.")
        object.__setattr__(self, "factor", float(self.factor))

    def count(
        self, confidence_BP: jax.Array, *, initial_B: jax.Array, step_B: jax.Array
    ) -> jax.Array:
        """See `Unmasking`."""
        number_P = jnp.arange(1, confidence_BP.shape[-1] + 1)
        passes_BP = confidence_BP >= 1 - self.factor / (number_P + 1)
        return jnp.where(passes_BP, number_P, 0).max(axis=-1).astype(jnp.int32)


class Unmasked(NamedTuple):
    """A block after a step."""

    tokens_BP: jax.Array
    revealed_BP: jax.Array
    """Positions that this step revealed."""
    failed_B: jax.Array
    """Rows in which a mask had no distribution (NaN or infinite logits): nothing was revealed."""


@dataclasses.dataclass(frozen=True)
class Unmasker:
    """Candidates, their confidence, and the rule.

    The mask itself is never revealed: its logit is -inf, also for confidences. (LLaDA's released
    code leaves this to the model; a block in which a mask "reveals" a mask might never end.)
    """

    rule: Unmasking
    mask_id: int
    sampling: Sampling = GREEDY
    """How candidates are drawn. Temperature 0: the argmax."""
    suppressed_ids: tuple[int, ...] = ()
    """Never revealed."""
    last_ids: tuple[int, ...] = ()
    """A candidate among these has confidence 0, and other candidates the confidence that they would
    have without these: they are revealed once no other candidate is left."""

    def clean_logits(self, logits_BPV: jax.Array) -> jax.Array:
        """The logits, with -inf at tokens that may not be revealed; at least float32."""
        # Confidences near 1 are compared with each other; bfloat16 has no number from 0.996 to 1.
        wide_BPV = logits_BPV.astype(at_least_float32(logits_BPV.dtype))
        return suppress(wide_BPV, (self.mask_id, *self.suppressed_ids))

    def unmask(
        self,
        logits_BPV: jax.Array,
        tokens_BP: jax.Array,
        *,
        masked_BP: jax.Array,
        positions_BP: jax.Array,
        step_B: jax.Array,
        initial_B: jax.Array,
        keys_B: jax.Array,
    ) -> Unmasked:
        """One step of a block.

        Args:
          logits_BPV: the model's, for exactly this state of the block.
          tokens_BP: the block.
          masked_BP: positions that may be revealed, all of them masks.
          positions_BP: absolute positions.
          step_B: steps that the row has taken in this block.
          initial_B: masks that the block began with.
          keys_B: one typed key per row; not used at temperature 0.

        Returns:
          `Unmasked`; rows without a mask stay as they are. Of equal confidences the leftmost is the
          largest.
        """
        logits_BPV = self.clean_logits(logits_BPV)
        candidates_BP = self._candidates(logits_BPV, positions_BP, step_B, keys_B)
        others_BPV = suppress(logits_BPV, self.last_ids)
        chosen_BP = jnp.take_along_axis(
            others_BPV, jnp.maximum(candidates_BP, 0)[..., None], axis=-1
        )[..., 0]
        confidence_BP = jnp.exp(chosen_BP - jax.nn.logsumexp(others_BPV, axis=-1))
        sound_BP = (candidates_BP >= 0) & jnp.isfinite(confidence_BP)
        failed_B = (masked_BP & ~sound_BP).any(axis=-1)
        confidence_BP = jnp.where(masked_BP, confidence_BP, -jnp.inf)
        rank_BP, falling_BP = ranked(confidence_BP)
        number_B = self.rule.count(falling_BP, initial_B=initial_B, step_B=step_B)
        number_B = jnp.where(failed_B, 0, jnp.maximum(number_B, 1))
        revealed_BP = masked_BP & (rank_BP < number_B[:, None])
        tokens_BP = jnp.where(revealed_BP, candidates_BP, tokens_BP)
        return Unmasked(tokens_BP, revealed_BP, failed_B)

    def best_confidence(self, logits_BPV: jax.Array) -> jax.Array:
        """Confidence of each position's likeliest token, [B, P], from clean logits."""
        others_BPV = suppress(logits_BPV, self.last_ids)
        best_BP = others_BPV.max(axis=-1)
        confidence_BP = jnp.exp(best_BP - jax.nn.logsumexp(others_BPV, axis=-1))
        return jnp.where(best_BP < logits_BPV.max(axis=-1), 0.0, confidence_BP)

    def _candidates(
        self, logits_BPV: jax.Array, positions_BP: jax.Array, step_B: jax.Array, keys_B: jax.Array
    ) -> jax.Array:
        if self.sampling.greedy:
            return largest_index(logits_BPV)
        probs_BPV = self.sampling.probabilities(logits_BPV)
        keys_BP = position_keys(keys_B, step_B, positions_BP)
        return jax.vmap(jax.vmap(self.sampling.sample))(keys_BP, probs_BPV)


def ranked(values_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rank of each value (0: the largest; of equal ones the leftmost), and the values sorted.

    All pairs are compared: for blocks that runs and compiles faster than a sort.
    """
    place_P = jnp.arange(values_BP.shape[-1])
    mine_BP1, other_B1P = values_BP[..., :, None], values_BP[..., None, :]
    before_BPP = (other_B1P > mine_BP1) | ((other_B1P == mine_BP1) & (place_P < place_P[:, None]))
    rank_BP = before_BPP.sum(axis=-1, dtype=jnp.int32)
    at_rank_BPP = rank_BP[..., None, :] == place_P[:, None]
    return rank_BP, jnp.where(at_rank_BPP, other_B1P, -jnp.inf).max(axis=-1)


def position_keys(keys_B: jax.Array, step_B: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """One key for each position and step. Positions are absolute, so the block is not folded in."""
    stepped_B = jax.vmap(jax.random.fold_in)(keys_B, step_B)
    return jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))(stepped_B, positions_BP)


UNMASKING: Mapping[str, Callable[[DiffusionEvaluationConfig, int], Unmasking]] = MappingProxyType(
    {
        "scheduled": lambda settings, block_length: Scheduled(settings.steps or block_length),
        "threshold": lambda settings, block_length: Threshold(settings.threshold),
        "factor": lambda settings, block_length: Factor(settings.factor),
    }
)
"""(settings, tokens of a block) -> the rule, by the names of `diffusion.unmasking`. Result files
name a rule by its `str()` and draft graphs by its fields: it is a dataclass of plain numbers."""


def make_unmasking(settings: DiffusionEvaluationConfig, *, block_length: int) -> Unmasking:
    """The rule that the settings name.

    Raises:
      ValueError: no such rule, or a parameter out of its range.
    """
    name = settings.unmasking
    if name not in UNMASKING:
        raise ValueError(
            f"diffusion.unmasking must be one of {', '.join(UNMASKING)}: got {name!r}."
            f"{did_you_mean(name, UNMASKING)}"
        )
    return UNMASKING[name](settings, block_length)
