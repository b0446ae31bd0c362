"""Targets and drafters with everything that belongs to them, opened from folders.

This is the one place where an evaluation looks into a folder to see what is there.

>>> target = open_target(TargetConfig(path="embedded"))
>>> proposer = untrained_drafter("ngram").proposer(target, sampling=Sampling(0.0))
>>> proposer.block_size
8
>>> drafter = open_drafter("runs/full", target=target)  # doctest: +SKIP
>>> llada = TargetConfig(path="LLaDA-8B-Instruct")
>>> diffusion_target = open_diffusion_target(llada).with_weights()  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxspec.checkpoints.denoiser import is_denoiser
from jaxspec.checkpoints.families.registry import StoredModel, open_folder
from jaxspec.checkpoints.folders import exported_weights, fingerprint, target_folder
from jaxspec.checkpoints.huggingface import Placement, load_params, load_target
from jaxspec.config import (
    DiTConfig,
    Dtype,
    LanguageModelConfig,
    MaskedTransformerConfig,
    Suppress,
    TargetConfig,
)
from jaxspec.data.chat_template import PLAIN
from jaxspec.data.tokenizer import Tokenizer, check_same_tokens
from jaxspec.data.tokenizer_files import has_tokenizer
from jaxspec.decoding.layout import cut_in_turn, unrolls
from jaxspec.decoding.placement import mesh_of, on_mesh_of
from jaxspec.drafters.denoising import Denoising
from jaxspec.drafters.kind import DrafterKind, DraftSettings, recorded_group
from jaxspec.drafters.protocol import Proposer
from jaxspec.drafters.registry import KINDS, kind_of
from jaxspec.evals.folder_names import folder_name
from jaxspec.evals.mesh import check_model_fits
from jaxspec.evals.results import OTHER_TARGET
from jaxspec.files import user_path
from jaxspec.json_files import read_object
from jaxspec.models.registry import AnyDenoiser, LanguageModel, make_denoiser, make_model
from jaxspec.ops.sampling import Sampling
from jaxspec.parallel.rules import Rules


def _for_decoding(config: Any, *, dtype: Dtype) -> Any:
    """The configuration with what an evaluation chooses."""
    return dataclasses.replace(
        config,
        dtype=dtype,
        param_dtype=dtype,
        unroll_layers=unrolls(config.num_layers),
    )


def _laid_out(params: Any, config: Any) -> Any:
    """Parameters in the layout of decoding loops; the given tree must not be used any more."""
    with on_mesh_of(params):
        return cut_in_turn(params, unrolled=config.unroll_layers)


def _placement(mesh: Mesh | None) -> Placement:
    """Where weights are read to; None: the default device."""
    return None if mesh is None else functools.partial(Rules().shardings, mesh=mesh)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OpenedTarget:
    """What targets of both kinds are made of."""

    name: str
    """What rows of results call it."""
    model: Any
    tokenizer: Tokenizer
    params: Any
    fingerprint: str
    """Distinguishes its weights from others."""

    @property
    def config(self) -> Any:
        """The model's shape."""
        return self.model.config

    @property
    def num_tokens(self) -> int:
        """Ids of the tokenizer; the embedding may have more rows."""
        return self.tokenizer.vocab_size

    @property
    def mask_id(self) -> int | None:
        """The tokenizer's mask token, if it has one."""
        return self.tokenizer.mask_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response."""
        return tuple(i for i in self.tokenizer.stop_ids if i < self.config.vocab_size)

    @property
    def unused_ids(self) -> tuple[int, ...]:
        """Rows of the embedding that have no token."""
        return tuple(range(self.tokenizer.vocab_size, self.config.vocab_size))

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """Ids that are not text: unused ones, and special ones that do not end a response."""
        special = {*self.tokenizer.special_ids, self.tokenizer.pad_id}
        reserved = (special | set(self.unused_ids)) - set(self.stop_ids)
        return tuple(sorted(i for i in reserved if i < self.config.vocab_size))

    def suppressed_ids(self, suppress: Suppress) -> tuple[int, ...]:
        """Ids that no response may hold, by `EvaluationConfig.suppress`."""
        return {"none": (), "unused": self.unused_ids, "special": self.reserved_ids}[suppress]

    def explain_suppressed(self, suppress: Suppress) -> str:
        """A sentence for reports."""
        ids = self.suppressed_ids(suppress)
        if not ids:
            return "No token was suppressed in the target: it answered as it would by itself."
        kind = "ids without a token" if suppress == "unused" else "special, padding and unused ids"
        return (
            f"{len(ids)} {kind} were suppressed in the target (evaluation.suppress {suppress!r}): "
            "its answers may differ from those it would give by itself."
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TargetBundle(OpenedTarget):
    """A target that decodes from left to right."""

    model: LanguageModel


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DiffusionTarget(OpenedTarget):
    """A diffusion language model, which drafts for itself."""

    model: AnyDenoiser
    stored: StoredModel

    @property
    def mask_id(self) -> int:
        """The model's own mask, which the tokenizer need not know."""
        mask_id: int = self.config.mask_id
        return mask_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response; never the mask."""
        return tuple(i for i in super().stop_ids if i != self.mask_id)

    @property
    def unused_ids(self) -> tuple[int, ...]:
        """Rows of the embedding that have no token, but for the mask's."""
        return tuple(i for i in super().unused_ids if i != self.mask_id)

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """Ids that are not text, but for the mask, which decoding leaves out itself."""
        return tuple(i for i in super().reserved_ids if i != self.mask_id)

    def with_weights(self, *, mesh: Mesh | None = None, laid_out: bool = False) -> DiffusionTarget:
        """The same one, ready to decode.

        Args:
          mesh: the devices that hold the weights and decode; None: the default device.
          laid_out: see `open_target`.

        Raises:
          ValueError: tensors that do not fit, or a mesh that does not divide the model.
        """
        check_model_fits(self.config, mesh, name=self.name)
        params = load_params(self.stored, dtype=self.config.dtype, shardings=_placement(mesh))
        params = jax.device_put(params)
        if laid_out:
            params = _laid_out(params, self.config)
        return dataclasses.replace(self, params=params)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DrafterBundle:
    """A drafter for one target, ready to propose."""

    name: str
    loss: str
    """`LossConfig.label` of its training run, or "full -> uniform" if the run was continued with
    another loss; its name if no loss is recorded; the kind, for drafters that were not trained to
    draft. `results.OTHER_TARGET` is added if the run recorded other weights than the target's."""
    seed: int | None
    """Seed of its training run, where that is recorded."""
    kind: str
    """Its name in `jaxspec.drafters.registry.KINDS`."""
    model: Any = None
    """The network; None for kinds without one."""
    params: Any = dataclasses.field(default_factory=dict)
    trained_block: int = 0
    """Block of its training run; 0 where that is not known."""
    fingerprint: str = ""
    """Distinguishes its weights from others; "" for kinds without any."""
    trained_on_other_target: bool | None = None
    """Whether its run recorded other weights than the target's; None if it recorded none."""
    recorded_target: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings of the target (`TargetConfig`) that its run recorded; {} if it recorded none."""

    @property
    def identity(self) -> str:
        """One line that distinguishes its rows from those of other drafters."""
        weights = f", weights {self.fingerprint}" if self.fingerprint else ""
        return f"{self.name}: {self.kind}, loss {self.loss}, seed {self.seed}{weights}"

    @property
    def entry(self) -> DrafterKind:
        """What is known of its kind."""
        return KINDS[self.kind]

    @property
    def block_size(self) -> int:
        """K unless told otherwise: what it was trained with, or what is usual for its kind."""
        return self.trained_block or self.entry.block_size

    def params_with(self, target: TargetBundle) -> Any:
        """The parameters that a strategy with this drafter takes."""
        if not self.entry.drafts:
            return target.params
        return {"target": target.params, "drafter": self.params}

    def proposer(
        self,
        target: TargetBundle,
        *,
        block_size: int = 0,
        sampling: Sampling,
        denoising: Denoising | None = None,
        suppress: Suppress = "none",
    ) -> Proposer:
        """The drafter as decoding wants it; a `block_size` of 0 is its own.

        It drafts neither what the target may not emit, nor ids without a token.

        Raises:
          ValueError: settings that the drafter cannot follow.
        """
        make = self.entry.proposer
        assert make is not None, "the target alone proposes nothing"
        settings = DraftSettings(
            block_size=block_size or self.block_size,
            sampling=sampling,
            denoising=denoising or Denoising(),
            suppressed_ids=tuple(sorted({*target.unused_ids, *target.suppressed_ids(suppress)})),
        )
        try:
            return make(self.model, target, settings)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


def untrained_drafter(kind: str) -> DrafterBundle:
    """A drafter of a kind that needs no folder: "ngram", or "none", the target alone."""
    assert not KINDS[kind].is_trained, f"a drafter of kind {kind} is opened from a folder"
    return DrafterBundle(name=kind, loss=kind, seed=None, kind=kind)


def open_target(
    target: TargetConfig,
    *,
    default_template: str | None = None,
    mesh: Mesh | None = None,
    laid_out: bool = False,
) -> TargetBundle:
    """Opens the target that a run names.

    Args:
      target: where it is, and in which dtype it computes.
      default_template: see `Tokenizer.load`.
      mesh: the devices that hold its weights and decode; None: the default device.
      laid_out: whether the weights are laid out as decoding loops want them. Otherwise each
        strategy makes a copy of the layers (`Strategy.prepare`). `model.apply` takes weights that
        are laid out only after `jaxspec.decoding.layout.stack_layers`.

    Raises:
      ValueError: no such folder, a model that is not supported, a tokenizer that does not fit, or a
        mesh that does not divide the model.
    """
    folder = target_folder(target.path)
    stored = open_folder(folder)
    name = target.path if target.path == "embedded" else folder_name(folder)
    check_model_fits(stored.as_target(), mesh, name=name)
    config, params = load_target(stored, dtype=target.dtype, shardings=_placement(mesh))
    config = _for_decoding(config, dtype=target.dtype)
    config = dataclasses.replace(config, attention=target.attention)
    if laid_out:
        params = _laid_out(params, config)
    tokenizer = _target_tokenizer(stored, target, config, default_template=default_template)
    return TargetBundle(
        name=name,
        model=make_model(config),
        tokenizer=tokenizer,
        params=params,
        fingerprint=fingerprint(folder, config_json=stored.content),
    )


def stored_target(target: TargetConfig) -> StoredModel:
    """The folder of a run's target, with config.json read and nothing else.

    Raises:
      ValueError: no such folder.
    """
    return open_folder(target_folder(target.path))


def is_diffusion_target(target: TargetConfig, *, stored: StoredModel | None = None) -> bool:
    """Whether a run's target is a diffusion language model.

    Args:
      target: where it is.
      stored: the same, opened already.

    Raises:
      ValueError: no such folder.
    """
    return is_denoiser(stored or stored_target(target))


def open_diffusion_target(
    target: TargetConfig, *, stored: StoredModel | None = None
) -> DiffusionTarget:
    """The diffusion language model that a run names: a LLaDA, an SDAR, or what a run left.

    Its weights are not read (`DiffusionTarget.with_weights`): mistakes are refused before that.

    Args:
      target: where it is, and in which dtype it computes.
      stored: its folder, opened already.

    Raises:
      ValueError: no such folder, another kind of model, no tokenizer, or one that does not fit.
    """
    stored = stored or stored_target(target)
    folder = stored.folder
    if not isinstance(stored.config, DiTConfig | MaskedTransformerConfig):
        raise ValueError(
            f"target.path is {target.path!r}, a language model that goes from left to right; "
            "expected a diffusion language model: a LLaDA, an SDAR, or the export of a run with "
            'training.task "denoiser".'
        )
    if not has_tokenizer(folder):
        raise ValueError(f"No tokenizer.json in {folder}: put the model's tokenizer there.")
    config = _for_decoding(stored.config, dtype=target.dtype)
    if config.context == "causal":
        raise ValueError(
            f"{folder}: context is 'causal': clean tokens of this model see only what is before "
            "them, which is for drafters. Expected 'bidirectional'."
        )
    tokenizer = _target_tokenizer(stored, target, config, default_template=PLAIN)
    return DiffusionTarget(
        name=folder_name(folder),
        model=make_denoiser(config),
        tokenizer=tokenizer,
        params=None,
        stored=stored,
        fingerprint=fingerprint(folder, config_json=stored.content),
    )


def _target_tokenizer(
    stored: StoredModel,
    target: TargetConfig,
    config: LanguageModelConfig | DiTConfig,
    *,
    default_template: str | None,
) -> Tokenizer:
    tokenizer = Tokenizer.load(
        stored.folder,
        template_options=target.template_options,
        default_template=default_template,
        model_config=stored.raw,
    )
    if not tokenizer.fit_to(config.vocab_size):
        raise ValueError(
            f"The tokenizer in {stored.folder} has {tokenizer.vocab_size} ids, but the model's "
            f"embedding only {config.vocab_size} rows: they do not belong together."
        )
    return tokenizer


def open_drafter(folder: str | Path, *, target: TargetBundle) -> DrafterBundle:
    """Opens a drafter: a run's folder (with export/ inside), or a folder of weights.

    The configuration that is read there decides the kind (`jaxspec.drafters.registry.kind_of`).

    Args:
      folder: where it is.
      target: what it is to draft for; it computes in the target's dtype, and on its devices.

    Raises:
      ValueError: no exported weights there, a drafter for another target, or another tokenizer.
    """
    folder = user_path(folder)
    weights = exported_weights(folder)
    stored = open_folder(weights)
    name = kind_of(stored.config)
    kind = KINDS[name]
    dtype = target.config.dtype
    placement = _placement(mesh_of(target.params))
    params = load_params(stored, dtype=dtype, target_config=target.config, shardings=placement)
    config = _for_decoding(stored.config, dtype=dtype)
    if kind.tokenizer != "none":
        _check_tokenizer(folder, weights, kind, config, target=target)
    assert kind.network is not None, f"kind {name} is opened from folders"
    # The export has its own record: the run may have continued since.
    record = _provenance(weights) or _provenance(folder)
    loss = _recorded_losses(kind, config, record) or folder_name(folder)
    fingerprints = record.get("fingerprints")
    trained_for = fingerprints.get("target.path") if isinstance(fingerprints, Mapping) else None
    is_other = None if trained_for is None else trained_for != target.fingerprint
    return DrafterBundle(
        name=folder_name(folder),
        loss=f"{loss} {OTHER_TARGET}" if is_other else loss,
        seed=record.get("seed"),
        kind=name,
        model=kind.network(config, target, str(folder)),
        params=jax.device_put(params),
        trained_block=kind.history(config, _settings(record)).block_size,
        fingerprint=fingerprint(weights, config_json=stored.content),
        trained_on_other_target=is_other,
        recorded_target=recorded_group(_settings(record), "target"),
    )


def _recorded_losses(kind: DrafterKind, config: Any, record: Mapping[str, Any]) -> str | None:
    """The loss that a run recorded, or "full -> uniform" if it was continued with another one."""
    losses = [
        kind.history(config, _settings(segment)).loss
        for segment in record.get("segments") or [record]
        if isinstance(segment, Mapping)
    ]
    if not any(losses):
        return None
    return " -> ".join(loss or "unknown" for loss, _ in itertools.groupby(losses))


def _settings(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a run or of one of its segments; {} if they are not recorded."""
    run = record.get("config")
    return run if isinstance(run, Mapping) else {}


def _check_tokenizer(
    folder: Path, weights: Path, kind: DrafterKind, config: Any, *, target: TargetBundle
) -> None:
    """The drafter reads the target's ids through an embedding of its own."""
    if kind.tokenizer == "compared" or has_tokenizer(weights):
        check_same_tokens(Tokenizer.load(weights), target.tokenizer, name=str(folder))
    elif config.vocab_size != target.num_tokens + 1:
        raise ValueError(
            f"The drafter in {folder} has no tokenizer to compare with the target's, and an "
            f"embedding of {config.vocab_size} rows where {target.num_tokens} tokens and a mask "
            "are expected: put its tokenizer's files there."
        )


def _provenance(folder: Path) -> dict[str, Any]:
    file = folder / "provenance.json"
    if not file.is_file():
        return {}
    return read_object(file)
