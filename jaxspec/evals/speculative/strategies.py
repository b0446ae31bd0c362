"""From the settings of an evaluation to the strategy that decodes.

>>> strategy = build_strategy(settings, target, drafter)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses

from jaxspec.config import EvaluationConfig
from jaxspec.decoding import (
    Adaptive,
    Autoregressive,
    ChainSpeculative,
    DecodeRules,
    Speculative,
    TreeSpeculative,
)
from jaxspec.drafters.denoising import Denoising
from jaxspec.evals.opening import DrafterBundle, TargetBundle
from jaxspec.ops.sampling import GREEDY, Sampling
from jaxspec.verify.rules import find_rule

AnyStrategy = Autoregressive | Speculative | Adaptive


def decode_rules(settings: EvaluationConfig, target: TargetBundle) -> DecodeRules:
    """When responses end, and what they may not hold."""
    suppressed = target.suppressed_ids(settings.suppress)
    return DecodeRules(settings.max_new_tokens, target.stop_ids, suppressed)


def target_sampling(settings: EvaluationConfig) -> Sampling:
    """The target's distribution."""
    return Sampling(settings.temperature, settings.top_k, settings.top_p, settings.min_p)


def draft_sampling(settings: EvaluationConfig) -> Sampling:
    """The distribution of sampled drafts: the target's filters with a temperature of their own."""
    sampling = target_sampling(settings)
    if settings.draft_temperature is None:
        return sampling
    return dataclasses.replace(sampling, temperature=settings.draft_temperature)


def verifier_of(settings: EvaluationConfig, drafter: DrafterBundle) -> str:
    """The name of the rejection rule, with "auto" decided."""
    if settings.verifier != "auto":
        return settings.verifier
    if settings.tree_nodes or (settings.chains and not settings.temperature):
        return "tree"
    if settings.chains:
        return "recursive"
    if not settings.temperature:
        return "greedy"
    is_sampled = drafter.entry.gives_rows and not draft_sampling(settings).greedy
    has_rows = not drafter.entry.denoises or settings.draft_rule != "point_mass"
    return "token" if is_sampled and has_rows else "point_mass"


def denoising_of(settings: EvaluationConfig) -> Denoising:
    """How masked-diffusion drafters fill a block."""
    # Where the configuration allows it, "reveal_time" is the same as "in_order".
    rule = "in_order" if settings.draft_rule == "reveal_time" else settings.draft_rule
    return Denoising(
        num_passes=settings.denoising_passes, order=settings.denoising_order, rule=rule
    )


def build_autoregressive(settings: EvaluationConfig, target: TargetBundle) -> Autoregressive:
    """The target by itself."""
    return Autoregressive(target.model, decode_rules(settings, target), target_sampling(settings))


def build_reference(settings: EvaluationConfig, target: TargetBundle) -> Autoregressive:
    """The target by itself, in passes of `settings.reference_rows` rows."""
    alone = build_autoregressive(settings, target)
    return dataclasses.replace(alone, pass_rows=settings.reference_rows)


def build_strategy(
    settings: EvaluationConfig, target: TargetBundle, drafter: DrafterBundle
) -> AnyStrategy:
    """The target with a drafter.

    Raises:
      ValueError: settings that contradict each other, or strategy "auto", which is not chosen yet.
    """
    if settings.strategy == "auto":
        raise ValueError(
            "evaluation.strategy 'auto' is decided by an evaluation: give 'given' or 'off' here."
        )
    if not drafter.entry.drafts or settings.strategy == "off":
        return build_autoregressive(settings, target)
    _check_sizes(settings, target.model.config.max_position_embeddings)
    verifier = verifier_of(settings, drafter)
    rule = find_rule(verifier)
    wants_samples = (rule.drafts == "block" and rule.told_rows) or bool(settings.chains)
    if settings.draft_temperature and not wants_samples:
        raise ValueError(
            f"evaluation.draft_temperature {settings.draft_temperature} is for sampled drafts: "
            f"verifier {verifier!r} takes the likeliest tokens."
        )
    proposer = drafter.proposer(
        target,
        block_size=settings.block_size,
        sampling=draft_sampling(settings) if wants_samples else GREEDY,
        denoising=denoising_of(settings),
        suppress=settings.suppress,
    )
    rules, sampling = decode_rules(settings, target), target_sampling(settings)
    common = (target.model, proposer, rules, verifier, sampling)
    strategy: Speculative
    if settings.chains:
        strategy = ChainSpeculative(*common, num_chains=settings.chains)
    elif settings.tree_nodes:
        strategy = TreeSpeculative(*common, num_nodes=settings.tree_nodes)
    elif rule.drafts != "block":
        raise ValueError(
            f"Verifier {verifier!r} is for several drafts: set evaluation.chains (or "
            "evaluation.tree_nodes, for 'tree')."
        )
    else:
        strategy = Speculative(*common)
    if not settings.adaptive_sizes:
        return strategy
    return Adaptive([resized(strategy, size) for size in settings.adaptive_sizes])


def _check_sizes(settings: EvaluationConfig, positions: int) -> None:
    """Raises ValueError if a round drafts more tokens than the target has positions."""
    sizes = {
        "evaluation.block_size": settings.block_size,
        "evaluation.tree_nodes": settings.tree_nodes,
        "evaluation.adaptive_sizes": max(settings.adaptive_sizes, default=0),
    }
    for name, size in sizes.items():
        if size > positions:
            raise ValueError(
                f"{name} is {size}, but the target has only {positions} positions: choose a "
                "smaller size."
            )


def resized(strategy: Speculative, size: int) -> Speculative:
    """The strategy with `size` tokens in each of the target's passes; with 1 nothing is drafted.

    Raises:
      ValueError: chains, whose size follows from the block.
    """
    if isinstance(strategy, ChainSpeculative):
        raise ValueError("Sampled chains have a single size: their block times their number.")
    if isinstance(strategy, TreeSpeculative) and size > 1:
        return dataclasses.replace(strategy, num_nodes=size - 1)
    proposer = dataclasses.replace(strategy.proposer, block_size=size)  # type: ignore[type-var]
    verifier = strategy.verifier
    if isinstance(strategy, TreeSpeculative):
        verifier = "greedy" if strategy.sampling.greedy else "point_mass"
    return Speculative(strategy.model, proposer, strategy.rules, verifier, strategy.sampling)
