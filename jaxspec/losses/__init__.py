"""Losses of a block-diffusion drafter: arrays in, scalars out, differentiable under jit.

"Teaching Diffusion to Speculate Left-to-Right" (arXiv 2606.11552): position-weighted cross-entropy,
first-error focal term and chain reward, with other objectives to compare against. Pass all logits
at once (`drafter_loss`), or never hold all of them in memory (`chunked_slot_statistics`, then
`loss_terms` and `total_from_terms`). `label_log_prob` and the three single losses are for
notebooks. `jaxspec.losses.terms` has the table of terms and says how to add one.
`jaxspec.losses.diffusion` has the losses of masked-diffusion language models, and
`jaxspec.losses.llada` LLaDA's.

Shapes: N blocks (any leading dimensions), G = block_size - 1 drafted slots, V vocabulary. The
anchor, slot 0 of a block, is never passed.

>>> import jax.numpy as jnp
>>> loss, metrics = drafter_loss(
...     jnp.zeros((1, 2, 4)), jnp.array([[0, 1]]), jnp.array([[True, True]]), config=LossConfig())
"""

from jaxspec.config import LossConfig
from jaxspec.losses.chain import chain_reward, prefix_probability
from jaxspec.losses.chunked import chunked_slot_statistics, chunked_token_values
from jaxspec.losses.combined import (
    LossWeights,
    drafter_loss,
    drafter_metrics,
    loss_terms,
    total_from_terms,
)
from jaxspec.losses.cross_entropy import cross_entropy, label_log_prob
from jaxspec.losses.diffusion import (
    elbo_values,
    log_scores,
    score_entropy_values,
    subs_log_probs,
    token_terms,
)
from jaxspec.losses.first_error import first_error_focal, first_error_slots
from jaxspec.losses.llada import answer_terms, masked_values
from jaxspec.losses.objectives import (
    LK,
    OBJECTIVES,
    TV,
    CrossEntropy,
    DetachedStreak,
    DPace,
    ForwardKL,
    Objective,
    SpecAUF,
    Streak,
    d_pace_weights,
)
from jaxspec.losses.positional import positional_weights
from jaxspec.losses.reduction import counted_slots, ratio, reached_slots, weighted_terms
from jaxspec.losses.slots import SlotStatistics, slot_statistics
from jaxspec.losses.terms import TERMS, Term, terms_needing_target_rows, terms_of
from jaxspec.ops.noise import (
    Corrupted,
    LogLinearSchedule,
    antithetic_times,
    corrupt,
    maskable_tokens,
    masking_probabilities,
    token_times,
)

__all__ = [
    "LK",
    "OBJECTIVES",
    "TERMS",
    "TV",
    "Corrupted",
    "CrossEntropy",
    "DPace",
    "DetachedStreak",
    "ForwardKL",
    "LogLinearSchedule",
    "LossConfig",
    "LossWeights",
    "Objective",
    "SlotStatistics",
    "SpecAUF",
    "Streak",
    "Term",
    "answer_terms",
    "antithetic_times",
    "chain_reward",
    "chunked_slot_statistics",
    "chunked_token_values",
    "corrupt",
    "counted_slots",
    "cross_entropy",
    "d_pace_weights",
    "drafter_loss",
    "drafter_metrics",
    "elbo_values",
    "first_error_focal",
    "first_error_slots",
    "label_log_prob",
    "log_scores",
    "loss_terms",
    "maskable_tokens",
    "masked_values",
    "masking_probabilities",
    "positional_weights",
    "prefix_probability",
    "ratio",
    "reached_slots",
    "score_entropy_values",
    "slot_statistics",
    "subs_log_probs",
    "terms_needing_target_rows",
    "terms_of",
    "token_terms",
    "token_times",
    "total_from_terms",
    "weighted_terms",
]
