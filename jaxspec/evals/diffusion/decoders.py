"""From the settings of an evaluation to the decoders of a diffusion language model.

>>> target = open_diffusion_target(config.target)  # doctest: +SKIP
>>> rules = diffusion_rules(config, target)  # doctest: +SKIP
>>> decoders = drafting_decoders(config.diffusion, rules, target)  # doctest: +SKIP
"""

from __future__ import annotations

from jaxspec.config import DiffusionEvaluationConfig, MaskedTransformerConfig, RunConfig
from jaxspec.decoding import DiffusionRules, DraftGraph, Scheduled, Spiffy
from jaxspec.decoding.diffusion.calibration import graph_settings
from jaxspec.decoding.diffusion.draft_graph import chain, check_graph, load_graph, nested, star
from jaxspec.decoding.diffusion.unmasking import make_unmasking
from jaxspec.evals.opening import DiffusionTarget
from jaxspec.ops.sampling import Sampling

BLOCK_LENGTH = 32
"""Tokens of a block, for models that were not trained with blocks."""


def diffusion_rules(config: RunConfig, target: DiffusionTarget) -> DiffusionRules:
    """The base decoder's rules.

    Raises:
      ValueError: settings that contradict each other or the model.
    """
    settings, evaluation = config.diffusion, config.evaluation
    model = target.model.config
    trained = model.block_length if isinstance(model, MaskedTransformerConfig) else 0
    block_length = settings.block_length or trained or BLOCK_LENGTH
    if trained and block_length != trained:
        raise ValueError(
            f"{target.name} was trained with blocks of {trained} tokens: got "
            f"diffusion.block_length {block_length}. Leave it at 0 or set it to {trained}."
        )
    if evaluation.max_new_tokens % block_length:
        raise ValueError(
            "evaluation.max_new_tokens is the length of a response and must be a multiple of the "
            f"blocks of {block_length} tokens (diffusion.block_length): got "
            f"{evaluation.max_new_tokens}."
        )
    never = (target.tokenizer.eos_id,) if settings.end_of_text == "never" else ()
    return DiffusionRules(
        model.mask_id,
        response_length=evaluation.max_new_tokens,
        block_length=block_length,
        unmasking=make_unmasking(settings, block_length=block_length),
        caching=settings.caching,
        block_causal=settings.block_causal or trained > 0,
        sampling=Sampling(
            evaluation.temperature,
            top_k=evaluation.top_k,
            top_p=evaluation.top_p,
            min_p=evaluation.min_p,
        ),
        guidance=settings.guidance,
        stop_ids=tuple(i for i in target.stop_ids if i not in never),
        suppressed_ids=(*target.suppressed_ids(evaluation.suppress), *never),
        last_ids=target.stop_ids if settings.end_of_text == "last" else (),
    )


def drafting_decoders(
    settings: DiffusionEvaluationConfig, rules: DiffusionRules, target: DiffusionTarget
) -> list[tuple[str, Spiffy]]:
    """The decoders that are measured against the base decoder, each with the name of its drafts.

    Raises:
      ValueError: a graph's file that cannot be read, was calibrated for something else, or has
        fewer nodes than asked for; FreeDave's drafts with steps of unequal shares.
    """
    # How many tokens per step reveals, for FreeDave's drafts; without a fixed share, at least one.
    share, steps = 1, 1
    if isinstance(rules.unmasking, Scheduled):
        steps = rules.unmasking.steps
        share = rules.block_length // steps
    if "freedave" in settings.drafts and rules.block_length % steps:
        raise ValueError(
            "diffusion.drafts freedave drafts what equal steps reveal, but "
            f"{steps} steps do not divide a block of {rules.block_length} tokens: "
            "choose a diffusion.steps that does, or other drafts."
        )
    graphs: list[tuple[str, DraftGraph]] = []
    for name in settings.drafts:
        for size in settings.num_drafts:
            if name == "freedave":
                graphs.append((name, nested(size, tokens_per_step=share)))
            else:
                graphs.append((name, chain(size) if name == "ssd" else star(size)))
    if settings.graph:
        graph = load_graph(settings.graph)
        expected = graph_settings(rules, model=target.fingerprint)
        check_graph(graph, expected, where=settings.graph)
        sizes = (graph.size,) if settings.kept_drafts else settings.num_drafts
        if max(sizes, default=0) > graph.size:
            raise ValueError(
                f"diffusion.num_drafts is {max(sizes)}, but {settings.graph} has {graph.size} "
                "nodes: ask for at most that many, or calibrate with a larger --budget."
            )
        graphs += [("spiffy", graph.first(size)) for size in sizes]
    return [
        (
            name,
            Spiffy(
                target.model,
                rules,
                graph=graph,
                layout=settings.layout,
                kept=settings.kept_drafts if name == "spiffy" else 0,
            ),
        )
        for name, graph in graphs
    ]
