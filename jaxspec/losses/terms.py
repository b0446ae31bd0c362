"""The terms of the combined loss, each of them one entry of one table.

A term is a function of the slots that returns (numerator, denominator) and never their quotient:
devices add up both before they divide, so many devices give the loss of one. The loss is the
objective plus weighted terms of three kinds:

- entries of `TERMS` whose weight is a field of `LossConfig`. They are part of every loss and are
  logged even at weight 0, so that runs with other losses can be compared;
- by name in `LossConfig.extra`: entries of `TERMS` without such a field, and the objectives
  ("forward_kl=0.5" next to cross-entropy is the distillation of arXiv 1503.02531);
- a function of your own, in `LossConfig.extra` as "module:function=weight" or
  "file.py:function=weight". provenance.json records that text. The file is executed when training
  starts, like a configuration file; reading a run's folder never executes one.

Dimension key: N blocks (any leading dimensions), G drafted slots of a block.

A term of your own, complete; `LossConfig(extra=("my_terms.py:miss=0.1",))` adds it:

>>> from jaxspec.losses import weighted_terms
>>> def miss(slots, *, mask_NG, weights_G):
...     '''The chance that a sampled draft is not the label.'''
...     return weighted_terms(1 - jnp.exp(slots.log_p_NG),
...                           weights_G=weights_G, mask_NG=mask_NG, normalize="weight")
>>> list(terms_of(LossConfig(extra=("tv=0.5",))))
['cross_entropy', 'first_error_focal', 'chain_reward', 'tv']
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxspec.config import ExtraTerm, LossConfig
from jaxspec.files import user_path
from jaxspec.losses.chain import chain_terms
from jaxspec.losses.first_error import first_error_slots, first_error_terms
from jaxspec.losses.objectives import OBJECTIVES, Objective, find_objective
from jaxspec.losses.reduction import count, weighted_terms
from jaxspec.losses.slots import SlotStatistics
from jaxspec.names import did_you_mean
from jaxspec.paths import local_copy
from jaxspec.user_modules import execute, module_name

Fraction = tuple[jax.Array, jax.Array]
"""(numerator, denominator) of a term, or (sum, count) of a metric."""


class TermFunction(Protocol):
    """What a term computes."""

    def __call__(
        self, slots: SlotStatistics, /, *, mask_NG: jax.Array | None, weights_G: jax.Array
    ) -> Fraction:
        """Numerator and denominator, two float32 scalars, summed over the slots that count."""
        ...


class MetricFunction(Protocol):
    """What a term logs."""

    def __call__(self, slots: SlotStatistics, /, *, mask_NG: jax.Array | None) -> Fraction:
        """Sum and count, without positional weights."""
        ...


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the loss."""

    function: TermFunction
    """Of the slots, which of them count, and the positional weights."""
    _: dataclasses.KW_ONLY
    field: str = ""
    """Field of `LossConfig` that holds the weight; "": `LossConfig.extra` gives it."""
    reward: bool = False
    """Whether it is subtracted from the loss."""
    counts_follow_predictions: bool = True
    """Whether the denominator depends on what the drafter predicts. False, which makes gradient
    accumulation exact, is only right where it follows from the masks alone."""
    needs_target_rows: bool = False
    """Whether it compares the drafter's distribution with the target's."""
    metric: MetricFunction | None = None
    """What is logged; None: the term itself, without positional weights."""

    def logged(self, slots: SlotStatistics, *, mask_NG: jax.Array | None) -> Fraction:
        """The metric, (sum, count)."""
        if self.metric is not None:
            return self.metric(slots, mask_NG=mask_NG)
        ones_G = jnp.ones(slots.log_p_NG.shape[-1], jnp.float32)
        return self.function(slots, mask_NG=mask_NG, weights_G=ones_G)


def _first_error(
    slots: SlotStatistics, *, mask_NG: jax.Array | None, weights_G: jax.Array
) -> Fraction:
    return first_error_terms(
        slots.log_p_NG, correct_NG=slots.correct_NG, weights_G=weights_G, mask_NG=mask_NG
    )


def _first_error_metric(slots: SlotStatistics, *, mask_NG: jax.Array | None) -> Fraction:
    return mean_over(-slots.log_p_NG, first_error_slots(slots.correct_NG, mask_NG=mask_NG))


def _chain(slots: SlotStatistics, *, mask_NG: jax.Array | None, weights_G: jax.Array) -> Fraction:
    del weights_G  # The products fall along the block by themselves.
    return chain_terms(slots.log_p_NG, mask_NG=mask_NG)


TERMS: Mapping[str, Term] = MappingProxyType(
    {
        "first_error_focal": Term(_first_error, field="focal", metric=_first_error_metric),
        "chain_reward": Term(_chain, field="chain", reward=True, counts_follow_predictions=False),
    }
)
"""The terms that stand next to the objective. An entry without a `field` is weighted by
`LossConfig.extra`, and is all that a new term needs."""


def terms_of(config: LossConfig, *, reread: bool = False) -> dict[str, Term]:
    """The terms of a loss by name, the objective first.

    Args:
      config: the loss. Modules and files that its `extra` names are imported here.
      reread: whether files that have changed since are executed again. A training does this once,
        at its start, so that it has one loss from beginning to end.

    Returns:
      The objective, the entries of `TERMS` that have a field, and the extra terms in their order.

    Raises:
      ValueError: an unknown objective or term, a file or module that fails, or a name used twice.
    """
    objective = find_objective(config.objective)
    terms = {config.objective: objective_term(objective, normalize=config.normalize)}
    terms |= {name: term for name, term in TERMS.items() if term.field}
    for extra in config.extra_terms:
        if extra.name in terms:
            own = terms[extra.name].field or "objective"
            raise ValueError(
                f"loss.extra names {extra.name!r}, which loss.{own} already makes part of the "
                f"loss: use loss.{own} for it, or give a term of your own another name."
            )
        terms[extra.name] = _find_extra(extra, normalize=config.normalize, reread=reread)
    return terms


def objective_term(objective: Objective, *, normalize: str) -> Term:
    """The term that an objective is, with weight 1 or as an extra term."""

    def function(
        slots: SlotStatistics, /, *, mask_NG: jax.Array | None, weights_G: jax.Array
    ) -> Fraction:
        values_NG, value_mask_NG = objective.slot_values(slots, mask_NG)
        return weighted_terms(
            values_NG, weights_G=weights_G, mask_NG=value_mask_NG, normalize=normalize
        )

    return Term(
        function,
        # The number of blocks with a counted slot is that of the masks, whichever slots these are.
        counts_follow_predictions=objective.counts_follow_predictions and normalize != "block",
        needs_target_rows=objective.needs_target_rows,
    )


def terms_needing_target_rows(config: LossConfig) -> tuple[str, ...]:
    """Names of the terms that compare the drafter's distribution with the target's."""
    return tuple(name for name, term in terms_of(config).items() if term.needs_target_rows)


def mean_over(values_NG: jax.Array, where_NG: jax.Array) -> Fraction:
    """Sum of the values where the flags are true, and the number of those places."""
    return jnp.sum(jnp.where(where_NG, values_NG, 0.0), dtype=jnp.float32), count(where_NG)


def _find_extra(extra: ExtraTerm, *, normalize: str, reread: bool) -> Term:
    if extra.source:
        return _import_term(extra, reread=reread)
    if extra.name in TERMS:
        return TERMS[extra.name]
    if extra.name in OBJECTIVES:
        return objective_term(OBJECTIVES[extra.name], normalize=normalize)
    names = [*(name for name, term in TERMS.items() if not term.field), *OBJECTIVES]
    raise ValueError(
        f"loss.extra names no known term: got {extra.name!r}, expected one of {', '.join(names)}, "
        "or MODULE:FUNCTION or FILE.py:FUNCTION for a term of your own."
        f"{did_you_mean(extra.name, names)}"
    )


def _import_term(extra: ExtraTerm, *, reread: bool) -> Term:
    where = f"loss.extra '{extra.source}:{extra.name}'"
    if extra.source.endswith(".py") and not user_path(extra.source).is_file():
        raise ValueError(f"{where}: there is no file {user_path(extra.source).resolve()}.")
    try:
        module = _import(extra.source, reread=reread)
    except Exception as error:
        raise ValueError(
            f"{where} cannot be imported: {type(error).__name__}: {error}. Name an importable "
            "module, or a Python file that ends in .py."
        ) from error
    found = getattr(module, extra.name, None)
    if isinstance(found, Term):
        return found
    if not callable(found):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"{where} must be a function or a jaxspec.losses.Term: got {found!r}."
            f"{did_you_mean(extra.name, names)}"
        )
    return Term(found)


def _import(source: str, *, reread: bool) -> ModuleType:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    file = user_path(source).resolve()
    name = module_name("terms", file)
    known = sys.modules.get(name)
    if known is not None and not (reread and _digest(file) != vars(known).get(_DIGEST)):
        return known
    digest = _digest(file)
    module = execute(local_copy(file), name=name)
    setattr(module, _DIGEST, digest)
    return module


_DIGEST = "__sha256__"
"""Attribute of a module: what its file was when it was executed."""


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
