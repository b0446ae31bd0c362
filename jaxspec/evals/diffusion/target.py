"""A diffusion language model as a target: opened from a folder, with rules and decoders.

The folder is a LLaDA, or whatever else `jaxspec.checkpoints.denoiser` opens: what
``training.task = "denoiser"`` leaves behind.

>>> target = load_diffusion_target(TargetConfig(path="LLaDA-8B-Instruct"))
>>> base = BlockDiffusion(target.model, diffusion_rules(config, target))
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxspec.checkpoints.denoiser import is_denoiser, load_denoiser, read_denoiser
from jaxspec.checkpoints.folders import fingerprint, target_folder
from jaxspec.config import (
    DiffusionEvaluationConfig,
    MaskedTransformerConfig,
    RunConfig,
    TargetConfig,
)
from jaxspec.data.chat_template import PLAIN
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.data.tokenizer_files import has_tokenizer
from jaxspec.decoding import DiffusionRules, DraftGraph, Factor, Scheduled, Spiffy, Threshold
from jaxspec.decoding.diffusion.calibration import graph_settings
from jaxspec.decoding.diffusion.draft_graph import chain, check_graph, load_graph, nested, star
from jaxspec.decoding.diffusion.unmasking import Unmasking
from jaxspec.evals.speculative.bundles import UNROLLED_LAYERS, folder_name, stop_ids, suppressed_ids
from jaxspec.models.mdlm import AnyDenoiser, make_denoiser
from jaxspec.ops.sampling import Sampling

BLOCK_LENGTH = 32
"""Of models that were not trained with blocks."""


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionTarget:
    """A diffusion language model."""

    folder: Path
    model: AnyDenoiser
    tokenizer: Tokenizer
    fingerprint: str
    """Tells its weights from others."""
    params: Any = None
    """None until `with_weights`."""

    @property
    def name(self) -> str:
        """What rows of results call it."""
        return folder_name(self.folder)

    def with_weights(self) -> DiffusionTarget:
        """The same one, ready to decode.

        Raises:
          ValueError: tensors that do not fit.
        """
        _, params = load_denoiser(self.folder, dtype=self.model.config.dtype)
        return dataclasses.replace(self, params=jax.device_put(params))


def is_diffusion_target(target: TargetConfig) -> bool:
    """Whether a run's target is a diffusion language model.

    Raises:
      ValueError: no such folder.
    """
    return is_denoiser(target_folder(target.path))


def load_diffusion_target(target: TargetConfig) -> DiffusionTarget:
    """The target that a run names, with its weights; raises what `open_diffusion_target` does."""
    return open_diffusion_target(target).with_weights()


def open_diffusion_target(target: TargetConfig) -> DiffusionTarget:
    """The target that a run names, without weights: enough to refuse what cannot be decoded.

    Raises:
      ValueError: no such folder, another kind of model, no tokenizer, or one that does not fit.
    """
    folder = target_folder(target.path)
    if not is_denoiser(folder):
        raise ValueError(
            f"target.path is {target.path!r}, a language model that goes from left to right; "
            "expected a diffusion language model: a LLaDA, an SDAR, or the export of a run with "
            'training.task "denoiser".'
        )
    if not has_tokenizer(folder):
        raise ValueError(f"No tokenizer.json in {folder}: put the model's tokenizer there.")
    config = dataclasses.replace(
        read_denoiser(folder), dtype=target.dtype, param_dtype=target.dtype
    )
    if config.context == "causal":
        raise ValueError(
            f"{folder}: context is 'causal': clean tokens of this model see only what is before "
            "them, which is for drafters. Expected 'bidirectional'."
        )
    config = dataclasses.replace(config, unroll_layers=config.num_layers <= UNROLLED_LAYERS)
    tokenizer = Tokenizer.load(
        folder, template_options=target.template_options, default_template=PLAIN
    )
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} ids, but the model's embedding "
            f"only {config.vocab_size} rows: they do not belong together."
        )
    return DiffusionTarget(folder, make_denoiser(config), tokenizer, fingerprint(folder))


def diffusion_rules(config: RunConfig, target: DiffusionTarget) -> DiffusionRules:
    """The base decoder's rules.

    Raises:
      ValueError: settings that do not go together.
    """
    settings, evaluation = config.diffusion, config.evaluation
    model, rows = target.model.config, target.model.config.vocab_size
    trained = model.block_length if isinstance(model, MaskedTransformerConfig) else 0
    block_length = settings.block_length or trained or BLOCK_LENGTH
    if trained and block_length != trained:
        raise ValueError(
            f"{target.name} was trained with blocks of {trained} tokens: got "
            f"diffusion.block_length {block_length}. Leave it at 0, or set it to {trained}."
        )
    if evaluation.max_new_tokens % block_length:
        raise ValueError(
            "evaluation.max_new_tokens is the length of a response and must be a multiple of the "
            f"blocks of {block_length} tokens (diffusion.block_length): got "
            f"{evaluation.max_new_tokens}."
        )
    ends = tuple(i for i in stop_ids(target.tokenizer, rows=rows) if i != model.mask_id)
    return DiffusionRules(
        model.mask_id,
        response_length=evaluation.max_new_tokens,
        block_length=block_length,
        unmasking=_unmasking(settings, block_length=block_length),
        caching=settings.caching,
        block_causal=settings.block_causal or trained > 0,
        sampling=Sampling(
            evaluation.temperature,
            top_k=evaluation.top_k,
            top_p=evaluation.top_p,
            min_p=evaluation.min_p,
        ),
        guidance=settings.guidance,
        stop_ids=ends,
        suppressed_ids=tuple(
            i for i in suppressed_ids(target.tokenizer, rows=rows) if i != model.mask_id
        ),
    )


def _unmasking(settings: DiffusionEvaluationConfig, *, block_length: int) -> Unmasking:
    if settings.unmasking == "threshold":
        return Threshold(settings.threshold)
    if settings.unmasking == "factor":
        return Factor(settings.factor)
    return Scheduled(settings.steps or block_length)


def drafting_decoders(
    settings: DiffusionEvaluationConfig, rules: DiffusionRules, target: DiffusionTarget
) -> list[tuple[str, Spiffy]]:
    """The decoders that are measured against the base decoder, and the names of their drafts.

    Raises:
      ValueError: a graph's file that cannot be read, was calibrated for something else, or has
        fewer nodes than are asked for; FreeDave's drafts for steps of unequal shares.
    """
    # FreeDave's share of a step; where a step has no fixed share, the one token that it always has.
    share, steps = 1, 1
    if isinstance(rules.unmasking, Scheduled):
        steps = rules.unmasking.steps
        share = rules.block_length // steps
    if "freedave" in settings.drafts and rules.block_length % steps:
        raise ValueError(
            "diffusion.drafts freedave drafts what equal steps reveal, and "
            f"{steps} steps do not divide a block of {rules.block_length} tokens: "
            "choose diffusion.steps that do, or other drafts."
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
                "nodes: ask for no more, or calibrate with a larger --budget."
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
