"""Training a masked-diffusion language model: from scratch, from other weights, or by LoRA.

>>> settings = DenoiserConfig(path="embedded", context="causal", lora_rank=8)
>>> task = DENOISER.build(RunConfig(denoiser=settings))
>>> sorted(jax.eval_shape(task.init, jax.random.key(0)))[0]
'layers/attention/k/kernel'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxspec.checkpoints.denoiser import (
    AnyDenoiserConfig,
    keep_layers,
    load_denoiser,
    read_denoiser,
    save_denoiser,
)
from jaxspec.checkpoints.families.registry import open_folder
from jaxspec.checkpoints.folders import exported_weights, target_folder
from jaxspec.config import DenoiserConfig, DiTConfig, Dtype, MaskedTransformerConfig, RunConfig
from jaxspec.data.tokenizer import Tokenizer, check_same_tokens
from jaxspec.data.tokenizer_files import has_tokenizer
from jaxspec.files import user_path
from jaxspec.models.registry import make_denoiser
from jaxspec.parallel.divisibility import split_sizes
from jaxspec.training.denoiser import DenoiserObjective
from jaxspec.training.lora import LowRankObjective, init_updates, merged
from jaxspec.training.tasks.shapes import in_float32
from jaxspec.training.tasks.task import (
    Save,
    Task,
    TaskKind,
    check_frozen,
    check_no_token_chunks,
    initialiser,
)

_RUNTIME = ("dtype", "param_dtype", "unroll_layers", "remat")
"""What a run may choose anew for the weights that it starts from."""
_SWITCHES = ("unroll_layers", "remat")
"""Those that `denoiser` has as well as `denoiser.architecture`."""


def build(config: RunConfig, *, tokenizer: Tokenizer | None = None) -> Task:
    """The task of a run.

    Raises:
      ValueError: no shape, one that does not fit the tokenizer or the weights it starts from,
        an objective that a denoiser cannot learn, or a rank that its matrices do not have.
    """
    settings = config.denoiser
    check_frozen(config.target)
    source = _source(settings)
    if source is not None and tokenizer is not None and has_tokenizer(source):
        check_same_tokens(Tokenizer.load(source), tokenizer, name=str(source))
    architecture = _shape(settings, source)
    if tokenizer is not None:
        architecture = _with_mask(architecture, tokenizer)
    _check_blocks(config, architecture)
    if settings.objective == "draft":
        check_no_token_chunks(config)
    model = make_denoiser(architecture)

    def load(shardings: Any = None) -> Any:
        assert source is not None, "there is a model to start from"
        _, params = load_denoiser(
            source,
            dtype=architecture.param_dtype,
            num_layers=architecture.num_layers,
            shardings=shardings,
        )
        return params

    is_draft = settings.objective == "draft"
    whole_model = Task(
        title=f"denoiser ({config.loss.label if is_draft else settings.objective})",
        config=_resolved(config, architecture),
        objective=DenoiserObjective(
            model,
            config.loss,
            settings.objective,
            anchors=config.data.anchors,
            anchor_sampling=config.data.anchor_sampling,
            block_size=settings.block_size,
            batch_size=config.data.batch_size,
            chunk_tokens=config.training.chunk_tokens,
        ),
        init=initialiser(model),
        models={"The denoiser": split_sizes(architecture)},
        save=_saves(architecture, source),
        load_initial=None if source is None else load,
        reads={} if source is None else {"denoiser.path": source},
    )
    return _low_rank(whole_model, load, settings) if settings.lora_rank else whole_model


def open_tokenizer(config: RunConfig, *, workdir: Path) -> Tokenizer:
    """The tokenizer of the target that the denoiser drafts for, or the folder that is named.

    Raises:
      ValueError: no such tokenizer.
    """
    del workdir
    return Tokenizer.load(
        config.data.tokenizer or target_folder(config.target.path),
        template_options=config.target.template_options,
    )


def read_export(config: RunConfig, folder: Path) -> tuple[Any, Save]:
    """See `TaskKind.read_export`."""
    del config
    architecture, params = load_denoiser(folder)
    return params, _saves(architecture, folder)


def _low_rank(task: Task, load: Any, settings: DenoiserConfig) -> Task:
    """The same task, learned through updates of low rank of the weights that `load` reads."""
    rank = settings.lora_rank
    scale = (settings.lora_alpha or 2.0 * rank) / rank
    shapes = jax.eval_shape(task.init, jax.random.key(0))

    def init(key: jax.Array) -> Any:
        return init_updates(key, shapes, rank=rank)

    jax.eval_shape(init, jax.random.key(0))  # Refuses a rank that the matrices cannot have.
    return dataclasses.replace(
        task,
        objective=LowRankObjective(task.objective, scale),
        init=init,
        frozen_shapes=shapes,
        load_frozen=load,
        load_initial=None,
        whole=lambda updates, base: merged(base, updates, scale=scale),
        adds_to="denoiser.path",
    )


def _source(settings: DenoiserConfig) -> Path | None:
    """Where the weights lie that training starts from; None: from scratch."""
    if settings.path == "embedded":
        return target_folder(settings.path)
    return exported_weights(user_path(settings.path)) if settings.path else None


def _shape(settings: DenoiserConfig, source: Path | None) -> AnyDenoiserConfig:
    """The shape that is trained: of the weights that training starts from, or the one given."""
    asked = settings.architecture
    given: AnyDenoiserConfig | None = asked
    if source is not None:
        given = keep_layers(read_denoiser(source), settings.num_layers)
        if asked is not None:
            _check_architecture(asked, given, source)
            given = dataclasses.replace(given, **{name: getattr(asked, name) for name in _RUNTIME})
    if given is None:
        raise ValueError(
            "Training a denoiser needs denoiser.architecture (its sizes, to train from scratch) or "
            "denoiser.path (weights to start from)."
        )
    given = _as_asked(given, settings)
    if not settings.lora_rank:  # Only the updates are trained, and they are float32.
        given = in_float32(given)
    own = getattr(given, "block_length", 0)
    if settings.context is None and own and own != settings.block_size:
        raise ValueError(
            f"The model in {source} reads blocks of {own} tokens, but denoiser.block_size is "
            f"{settings.block_size}: set it to {own}, or name denoiser.context 'block_causal' to "
            "train with other blocks."
        )
    if settings.context is not None:
        changes: dict[str, Any] = {"context": settings.context}
        if isinstance(given, MaskedTransformerConfig):
            is_block_causal = settings.context == "block_causal"
            changes["block_length"] = settings.block_size if is_block_causal else 0
        given = dataclasses.replace(given, **changes)
    return given


def _as_asked(shape: AnyDenoiserConfig, settings: DenoiserConfig) -> AnyDenoiserConfig:
    """The shape, computed as `denoiser` says where `denoiser.architecture` does not.

    Raises:
      ValueError: both give a dtype, and they differ.
    """
    changes: dict[str, Any] = {name: True for name in _SWITCHES if getattr(settings, name)}
    if settings.dtype:
        asked = settings.architecture
        if asked is not None and asked.dtype not in (settings.dtype, DiTConfig().dtype):
            raise ValueError(
                f"denoiser.dtype is {settings.dtype!r}, but denoiser.architecture.dtype is "
                f"{asked.dtype!r}: leave one of them out, or give both the same value."
            )
        changes["dtype"] = settings.dtype
    return dataclasses.replace(shape, **changes)


def _with_mask(config: AnyDenoiserConfig, tokenizer: Tokenizer) -> AnyDenoiserConfig:
    """The shape with the id of its mask filled in."""
    rows, ids = config.vocab_size, tokenizer.vocab_size
    if config.mask_token_id is None and tokenizer.mask_id is not None:
        config = dataclasses.replace(config, mask_token_id=tokenizer.mask_id)
    mask_id = config.mask_id
    if rows < ids or (mask_id < ids and mask_id not in tokenizer.special_ids):
        raise ValueError(
            f"The denoiser's embedding has {rows} rows and its mask is id {mask_id}, but the "
            f"tokenizer has {ids} ids of its own: the mask must be a special token or an id after "
            f"them. Give denoiser.architecture.vocab_size at least {ids + 1}, or name the mask in "
            "denoiser.architecture.mask_token_id."
        )
    if mask_id in tokenizer.stop_ids:
        raise ValueError(
            f"The denoiser's mask is id {mask_id}, which ends a text: it has to be learned, but a "
            "mask is never predicted. Name another special token in "
            "denoiser.architecture.mask_token_id, or leave that out and give "
            f"denoiser.architecture.vocab_size at least {ids + 1}."
        )
    return config


def _resolved(config: RunConfig, architecture: AnyDenoiserConfig) -> RunConfig:
    if not isinstance(architecture, DiTConfig):
        return config
    settings = dataclasses.replace(config.denoiser, architecture=architecture)
    return dataclasses.replace(config, denoiser=settings)


def _check_blocks(config: RunConfig, architecture: AnyDenoiserConfig) -> None:
    """Whether rows can be cut into the blocks of a block-causal model."""
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


def _check_architecture(given: DiTConfig, found: AnyDenoiserConfig, source: Path) -> None:
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


def _saves(architecture: AnyDenoiserConfig, start: Path | None) -> Save:
    """Writes the model, in the layout of what training started from where that can describe it."""
    stored = None if start is None else open_folder(start)

    def save(
        folder: Path,
        params: Any,
        *,
        tokenizer: Tokenizer,
        dtype: Dtype | None,
        provenance: Mapping[str, Any],
    ) -> None:
        save_denoiser(
            folder,
            architecture,
            params,
            dtype=dtype,
            tokenizer_folder=tokenizer.folder,
            provenance=provenance,
            start=stored,
        )

    return save


def _answers_itself(settings: DenoiserConfig) -> bool:
    """Whether the export is decoded by itself: learned to answer, or block-causal."""
    if settings.objective == "llada" or settings.context is not None:
        return settings.objective == "llada" or settings.context == "block_causal"
    source = _source(settings)
    return source is not None and read_denoiser(source).context == "block_causal"


DENOISER = TaskKind(
    name="denoiser",
    open_tokenizer=open_tokenizer,
    build=build,
    read_export=read_export,
    computed_as=lambda config: None,
    becomes=lambda config: "diffusion model" if _answers_itself(config.denoiser) else "drafter",
)
