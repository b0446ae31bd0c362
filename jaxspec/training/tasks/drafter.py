"""Training a DFlash drafter on the hidden states of its frozen target.

>>> DRAFTER.build(RunConfig()).title
'drafter (full)'
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoints.families import speculators
from jaxspec.checkpoints.folders import exported_weights, target_folder
from jaxspec.checkpoints.huggingface import (
    load_drafter,
    load_target,
    read_config,
    read_drafter_config,
    save_drafter,
)
from jaxspec.config import DrafterConfig, Dtype, LanguageModelConfig, RunConfig, TargetConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.files import user_path
from jaxspec.models.dflash import DFlash, check_chunks, resolve_config
from jaxspec.models.registry import make_model
from jaxspec.parallel.divisibility import split_sizes
from jaxspec.training.capture_check import capture_check
from jaxspec.training.draft_record import KEY, reference_record
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.tasks.shapes import agreed, check_architecture, check_positions
from jaxspec.training.tasks.task import (
    Init,
    Save,
    Task,
    TaskKind,
    check_attention,
    check_frozen,
    check_no_token_chunks,
    check_vocabulary,
    initialiser,
)

_COMPUTED = (
    *("path", "dtype", "param_dtype", "unroll_layers"),
    *("remat", "remat_policy", "chunk_blocks"),
)
"""What a run chooses for itself when it starts from a drafter."""


def build(config: RunConfig, *, tokenizer: Tokenizer | None = None) -> Task:
    """The task of a run.

    Raises:
      ValueError: no target, one that does not fit the tokenizer or the configuration, settings of
        it that contradict each other, or a drafter that does not fit the target.
    """
    check_frozen(config.target)
    config = dataclasses.replace(config, target=_as_asked(config.target))
    # Which token masks a slot does not matter to shapes.
    mask_token_id: int | None = 0
    if tokenizer is None:
        architecture = _frozen(
            config.target.architecture or read_config(target_folder(config.target.path)), config
        )
        check_positions(config, architecture)
    else:
        architecture = _checked_target(config, tokenizer)
        mask_token_id = tokenizer.mask_id
    check_attention(config, architecture)
    check_no_token_chunks(config)
    source = exported_weights(user_path(config.drafter.path)) if config.drafter.path else None
    given = config.drafter if source is None else _imported(config.drafter, source, architecture)
    if given.param_dtype != "float32":
        raise ValueError(
            f"drafter.param_dtype is {given.param_dtype!r}, but what is trained is kept in "
            "float32: in bfloat16, small updates would be rounded away. Leave it out. To compute "
            "in bfloat16, set drafter.dtype; to export it, training.export_dtype."
        )
    drafter_config = resolve_config(given, target=architecture, mask_token_id=mask_token_id)
    check_chunks(drafter_config.chunk_blocks, blocks=config.data.anchors)
    target = make_model(architecture)
    drafter = DFlash(drafter_config, architecture.hidden_size)
    layer_ids = drafter_config.target_layer_ids

    def load_frozen(shardings: Any) -> Any:
        folder = target_folder(config.target.path)
        _, params = load_target(folder, dtype=config.target.dtype, shardings=shardings)
        return params

    def load_initial(shardings: Any) -> Any:
        assert source is not None, "there is a drafter to start from"
        _, params = load_drafter(
            source,
            target_config=architecture,
            dtype=drafter_config.param_dtype,
            shardings=shardings,
        )
        return params

    reads = {"target.path": target_folder(config.target.path)} if tokenizer else {}
    if source is not None:
        reads["drafter.path"] = source

    def check(frozen: Any, tokens_BS: np.ndarray) -> None:
        difference = capture_check(
            target,
            frozen,
            tokens_BS,
            layer_ids=layer_ids,
            tolerance=config.training.capture_tolerance,
        )
        if jax.process_index() == 0:
            print(
                f"Capture check passed: log-probabilities rebuilt from the captured states differ "
                f"by at most {difference:.1e}.",
                flush=True,
            )

    def record_drafts(params: Any, frozen: Any, tokenizer: Tokenizer) -> Mapping[str, Any]:
        record = reference_record(
            params, frozen, target=target, drafter=drafter, tokenizer=tokenizer
        )
        return {KEY: record} if record else {}

    return Task(
        title=f"drafter ({config.loss.label})",
        config=dataclasses.replace(config, drafter=drafter_config),
        objective=DrafterObjective(
            target=target,
            drafter=drafter,
            loss=config.loss,
            anchors=config.data.anchors,
            anchor_sampling=config.data.anchor_sampling,
        ),
        init=_initialiser(drafter, len(layer_ids) * architecture.hidden_size),
        models={
            "The target": split_sizes(architecture),
            "The drafter": split_sizes(drafter_config, width=architecture.hidden_size),
        },
        save=_saves(drafter_config, architecture),
        frozen_shapes=jax.eval_shape(initialiser(target), jax.random.key(0)),
        load_frozen=load_frozen,
        load_initial=None if source is None else load_initial,
        reads=reads,
        record_drafts=record_drafts,
        capture_check=check,
    )


def _imported(asked: DrafterConfig, source: Path, target: LanguageModelConfig) -> DrafterConfig:
    """The shape of the drafter that training starts from, computed as the run asks for.

    Raises:
      ValueError: the drafter is for another target, or settings of the run contradict it.
    """
    found = read_drafter_config(source, target_config=target)
    default = DrafterConfig()
    wrong = [
        f"drafter.{name}: got {getattr(asked, name)}, but the drafter has {getattr(found, name)}"
        for name in (field.name for field in dataclasses.fields(DrafterConfig))
        if name not in (*_COMPUTED, "block_size")
        and getattr(asked, name) not in (getattr(default, name), getattr(found, name))
    ]
    if wrong:
        raise ValueError(
            f"Training starts from the drafter in {source} (drafter.path), whose shape differs "
            "from the settings:\n  " + "\n  ".join(wrong) + "\nGive these settings the drafter's "
            "values, or leave them out."
        )
    return dataclasses.replace(
        found,
        block_size=asked.block_size or found.block_size,
        **{name: getattr(asked, name) for name in _COMPUTED},
    )


def open_tokenizer(config: RunConfig, *, workdir: Path) -> Tokenizer:
    """The target's tokenizer, or the folder that is named.

    Raises:
      ValueError: no such tokenizer, or one that would have to be trained first.
    """
    del workdir
    folder = target_folder(config.target.path)
    if config.data.tokenizer == "train":
        raise ValueError(
            'data.tokenizer is "train", but a drafter needs the tokenizer of its target, whose ids '
            "it drafts: leave data.tokenizer empty."
        )
    return Tokenizer.load(
        config.data.tokenizer or folder, template_options=config.target.template_options
    )


def read_export(config: RunConfig, folder: Path) -> tuple[Any, Save]:
    """See `TaskKind.read_export`; the target's config.json is still needed."""
    target = read_config(target_folder(config.target.path))
    drafter, params = load_drafter(folder, target_config=target)
    return params, _saves(drafter, target)


def _as_asked(target: TargetConfig) -> TargetConfig:
    """The target's settings, with those of its architecture that say how it is computed."""
    return dataclasses.replace(target, **agreed(target) | {"remat": False})


def _frozen(architecture: LanguageModelConfig, config: RunConfig) -> LanguageModelConfig:
    """The target's shape, held and computed in the type that the run asks for."""
    asked = config.target
    return dataclasses.replace(
        architecture, dtype=asked.dtype, param_dtype=asked.dtype, attention=asked.attention
    )


def _checked_target(config: RunConfig, tokenizer: Tokenizer) -> LanguageModelConfig:
    folder = target_folder(config.target.path)
    architecture = _frozen(read_config(folder), config)
    check_architecture(config.target.architecture, architecture, folder)
    check_vocabulary(tokenizer, architecture)
    check_positions(config, architecture)
    # The frozen target runs as the configuration's architecture says.
    if config.target.architecture is not None:
        architecture = dataclasses.replace(
            architecture, unroll_layers=config.target.architecture.unroll_layers
        )
    return architecture


@functools.lru_cache(maxsize=8)
def _initialiser(drafter: DFlash, features_width: int) -> Init:
    """Makes a drafter's parameters; the same function for equal drafters."""

    def init(key: jax.Array) -> Any:
        features_BSE = jnp.zeros((1, 2, features_width))
        return drafter.init(key, features_BSE, method="initialise")["params"]

    return init


def _saves(drafter: DrafterConfig, target: LanguageModelConfig) -> Save:
    def save(
        folder: Path,
        params: Any,
        *,
        tokenizer: Tokenizer,
        dtype: Dtype | None,
        provenance: Mapping[str, Any],
    ) -> None:
        save_drafter(
            folder,
            drafter,
            params,
            target_config=target,
            dtype=dtype,
            tokenizer_folder=tokenizer.folder,
            provenance=provenance,
        )

    return save


DRAFTER = TaskKind(
    name="drafter",
    open_tokenizer=open_tokenizer,
    build=build,
    read_export=read_export,
    computed_as=lambda config: _as_asked(config.target),
    becomes=lambda config: "dflash",
    formats={"speculators": speculators.from_zlab},
)
