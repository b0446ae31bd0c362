"""What a masked-diffusion drafter's run is made of, before its first step.

>>> parts = denoiser_parts(config, denoiser_config(config.denoiser))
>>> parts.objective, parts.init, parts.frozen_shapes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.checkpoints.denoiser import (
    AnyDenoiserConfig,
    keep_layers,
    load_denoiser,
    read_denoiser,
)
from jaxspec.checkpoints.folders import exported_weights, target_folder
from jaxspec.config import DenoiserConfig, DiTConfig, MaskedTransformerConfig, RunConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.models.registry import make_denoiser
from jaxspec.training.denoiser import DenoiserObjective
from jaxspec.training.lora import LowRankObjective, init_updates, with_updates
from jaxspec.training.objectives import Objective

_RUNTIME = ("dtype", "param_dtype", "unroll_layers", "remat")
"""What a run may choose anew for weights that it goes on from."""


@dataclasses.dataclass(frozen=True)
class DenoiserParts:
    """What is trained, and what it starts from."""

    objective: Objective
    init: Callable[[jax.Array], Any]
    """key -> what is trained: all parameters, or updates of low rank."""
    frozen_shapes: Any
    """Of the base that updates belong to; {}: everything is trained."""
    load: Callable[[Any], Any]
    """shardings -> parameters of the run's source; a run from scratch has none."""
    whole: Callable[[Any], Any]
    """What is trained -> the model's parameters, with updates added to their base."""


def denoiser_source(settings: DenoiserConfig) -> Path | None:
    """Where the weights lie that training starts from.

    Raises:
      ValueError: no weights there.
    """
    if settings.path == "embedded":
        return target_folder(settings.path)
    return exported_weights(Path(settings.path).expanduser()) if settings.path else None


def denoiser_config(settings: DenoiserConfig) -> AnyDenoiserConfig:
    """The shape that is trained: of the weights that training starts from, or the one given.

    Raises:
      ValueError: no shape, or weights of another shape than the one given.
    """
    source, asked = denoiser_source(settings), settings.architecture
    given: AnyDenoiserConfig | None = asked
    if source is not None:
        given = keep_layers(read_denoiser(source), settings.num_layers)
        given = dataclasses.replace(given, unroll_layers=settings.unroll_layers)
        if asked is not None:
            _check_denoiser(asked, given, source)
            given = dataclasses.replace(given, **{name: getattr(asked, name) for name in _RUNTIME})
    if given is None:
        raise ValueError(
            "Training a denoiser needs denoiser.architecture (its sizes, to train from scratch) or "
            "denoiser.path (weights to go on from)."
        )
    if settings.context is not None:
        changes: dict[str, Any] = {"context": settings.context}
        if isinstance(given, MaskedTransformerConfig):
            is_block_causal = settings.context == "block_causal"
            changes["block_length"] = settings.block_size if is_block_causal else 0
        given = dataclasses.replace(given, **changes)
    return given


def check_blocks(config: RunConfig, architecture: AnyDenoiserConfig) -> None:
    """Whether rows can be cut into the blocks of a block-causal model.

    Raises:
      ValueError: rows that cannot, or an objective that has other blocks.
    """
    if architecture.context != "block_causal":
        return
    assert isinstance(architecture, MaskedTransformerConfig)
    if config.denoiser.objective == "draft":
        raise ValueError(
            "denoiser.objective is 'draft', but the context is 'block_causal', which is for "
            "diffusion language models: choose 'elbo', 'llada' or 'score_entropy'."
        )
    if config.data.packing:
        raise ValueError(
            "A block-causal denoiser needs documents that begin where blocks do: set data.packing "
            "to False."
        )
    if config.data.sequence_length % architecture.block_length:
        raise ValueError(
            f"data.sequence_length must be a multiple of the block ({architecture.block_length}): "
            f"got {config.data.sequence_length}."
        )


def check_mask(config: AnyDenoiserConfig, tokenizer: Tokenizer) -> AnyDenoiserConfig:
    """The shape with its mask's id filled in.

    Raises:
      ValueError: an embedding that is too small for the tokenizer, or a mask that is one of its
        words.
    """
    rows, ids = config.vocab_size, tokenizer.vocab_size
    if config.mask_token_id is None and tokenizer.mask_id is not None:
        config = dataclasses.replace(config, mask_token_id=tokenizer.mask_id)
    mask_id = config.mask_id
    if rows < ids or (mask_id < ids and mask_id not in tokenizer.special_ids):
        raise ValueError(
            f"The denoiser's embedding has {rows} rows and its mask is id {mask_id}, but the "
            f"tokenizer has {ids} ids of its own: the mask must be a special token or an id behind "
            f"them. Give denoiser.architecture.vocab_size at least {ids + 1}, or name the mask in "
            "denoiser.architecture.mask_token_id."
        )
    return config


def denoiser_parts(config: RunConfig, architecture: AnyDenoiserConfig) -> DenoiserParts:
    """Objective and parameters of a run.

    Raises:
      ValueError: a rank of updates that the model's matrices do not have, or rows that a
        block-causal model cannot be taught with.
    """
    check_blocks(config, architecture)
    settings, model = config.denoiser, make_denoiser(architecture)
    source = denoiser_source(settings)

    def init_model(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"]

    def load(shardings: Any = None) -> Any:
        assert source is not None, "there is a model to go on from"
        _, params = load_denoiser(
            source,
            dtype=architecture.param_dtype,
            num_layers=architecture.num_layers,
            shardings=shardings,
        )
        return params

    objective = DenoiserObjective(
        model,
        config.loss,
        settings.objective,
        anchors=config.data.anchors,
        block_size=settings.block_size,
        batch_size=config.data.batch_size,
    )
    rank = settings.lora_rank
    if not rank:
        return DenoiserParts(objective, init_model, {}, load, lambda params: params)
    scale = (settings.lora_alpha or 2.0 * rank) / rank
    shapes = jax.eval_shape(init_model, jax.random.key(0))

    def init_low_rank(key: jax.Array) -> Any:
        return init_updates(key, shapes, rank=rank)

    jax.eval_shape(init_low_rank, jax.random.key(0))
    return DenoiserParts(
        LowRankObjective(objective, scale),
        init_low_rank,
        shapes,
        load,
        lambda updates: with_updates(load(), updates, scale=scale),
    )


def _check_denoiser(given: DiTConfig, found: AnyDenoiserConfig, source: Path) -> None:
    """Compares what decides shapes and mathematics."""
    ignored = (*_RUNTIME, "context", "mask_token_id", "max_position_embeddings")
    wrong = [
        f"{field.name}: got {getattr(found, field.name, None)}, expected "
        f"{getattr(given, field.name)}"
        for field in dataclasses.fields(given)
        if field.name not in ignored
        and getattr(found, field.name, None) != getattr(given, field.name)
    ]
    if wrong:
        raise ValueError(
            f"The denoiser in {source} is not that of denoiser.architecture:\n  "
            + "\n  ".join(wrong)
        )
