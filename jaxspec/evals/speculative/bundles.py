"""A target or a drafter with everything that belongs to it, opened from a folder.

>>> target = load_target_bundle(TargetConfig(path="embedded"))
>>> drafter = load_drafter_bundle("runs/full", target=target)
>>> proposer = drafter.proposer(target, block_size=8, sampling=Sampling(0.0))
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from jaxspec.checkpoints.denoiser import is_denoiser, load_denoiser
from jaxspec.checkpoints.folders import exported_weights, target_folder
from jaxspec.checkpoints.huggingface import is_target, load_drafter, load_target
from jaxspec.config import LanguageModelConfig, LossConfig, TargetConfig
from jaxspec.data.tokenizer import Tokenizer, check_same_tokens
from jaxspec.data.tokenizer_files import has_tokenizer
from jaxspec.drafters.autoregressive import AutoregressiveProposer
from jaxspec.drafters.denoising import Order, Rule
from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.drafters.mdlm import CachedMDLMProposer, MDLMProposer
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.drafters.protocol import Proposer
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.mdlm import AnyDenoiser, BidirectionalTransformer, DiT, make_denoiser
from jaxspec.models.registry import LanguageModel, make_model
from jaxspec.ops.sampling import Sampling

UNROLLED_LAYERS = 8
"""Models of at most so many layers are unrolled: a step of a small one then takes half the time
(see `jaxspec.decoding.layout`), while large ones would take too long to compile."""


@dataclasses.dataclass(frozen=True, eq=False)
class TargetBundle:
    """A target, ready to decode."""

    name: str
    model: LanguageModel
    params: Any
    tokenizer: Tokenizer

    @property
    def config(self) -> LanguageModelConfig:
        """The target's shape."""
        return self.model.config

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response."""
        return stop_ids(self.tokenizer, rows=self.config.vocab_size)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Tokens that no response may hold."""
        return suppressed_ids(self.tokenizer, rows=self.config.vocab_size)


def stop_ids(tokenizer: Tokenizer, *, rows: int) -> tuple[int, ...]:
    """Tokens that end a response of a model whose embedding has so many rows."""
    return tuple(i for i in tokenizer.stop_ids if i < rows)


def suppressed_ids(tokenizer: Tokenizer, *, rows: int) -> tuple[int, ...]:
    """Tokens that no response may hold: special ones that do not end it, and unused rows."""
    special = {*tokenizer.special_ids, tokenizer.pad_id}
    padded_rows = range(tokenizer.vocab_size, rows)
    banned = (special | set(padded_rows)) - set(stop_ids(tokenizer, rows=rows))
    return tuple(sorted(i for i in banned if i < rows))


Kind = Literal["dflash", "mdlm", "autoregressive", "ngram", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRAINED: tuple[Kind, ...] = ("dflash", "mdlm", "autoregressive")
"""Kinds that are opened from a folder."""
_DEFAULT_BLOCK = {"mdlm": 9, "autoregressive": 5, "ngram": 8, "none": 1}


@dataclasses.dataclass(frozen=True)
class Denoising:
    """How a masked-diffusion drafter fills a block; see `EvaluationConfig`."""

    num_passes: int = 1
    order: Order = "ancestral"
    rule: Rule = "in_order"


@dataclasses.dataclass(frozen=True, eq=False)
class DrafterBundle:
    """A drafter for one target, ready to propose."""

    name: str
    loss: str
    """`LossConfig.label` of its training run; its name where that is not recorded, and the kind of
    drafters that were not trained to draft."""
    seed: int | None
    """Seed of its training run, where that is recorded."""
    kind: Kind
    model: DFlash | LanguageModel | AnyDenoiser | None
    """The network; None for prompt look-up and for no drafter."""
    params: Any
    trained_block: int = 0
    """Block of its training run; 0 where that is not known."""

    @property
    def block_size(self) -> int:
        """K unless told otherwise: what it was trained with, or what is usual for its kind."""
        return self.trained_block or _DEFAULT_BLOCK[self.kind]

    def proposer(
        self,
        target: TargetBundle,
        *,
        block_size: int = 0,
        sampling: Sampling,
        denoising: Denoising | None = None,
    ) -> Proposer:
        """The drafter as decoding wants it; a `block_size` of 0 is its own.

        Raises:
          ValueError: a block that the drafter cannot hold.
        """
        block_size = block_size or self.block_size
        if isinstance(self.model, DiT | BidirectionalTransformer):
            if self.model.config.context == "block_causal":
                raise ValueError(
                    f"{self.name} is block-causal: a diffusion language model to be decoded by "
                    "itself (--target.path), not a drafter."
                )
            is_causal = self.model.config.context == "causal"
            denoising = denoising or Denoising()
            return (CachedMDLMProposer if is_causal else MDLMProposer)(
                self.model,
                target.config.vocab_size,
                block_size,
                sampling=sampling,
                num_passes=denoising.num_passes,
                order=denoising.order,
                rule=denoising.rule,
                suppressed_ids=target.suppressed_ids,
            )
        if isinstance(self.model, DFlash):
            return DFlashProposer(
                target=target.model,
                drafter=self.model,
                block_size=block_size,
                sampling=sampling,
                suppressed_ids=target.suppressed_ids,
            )
        if isinstance(self.model, LanguageModel):
            return AutoregressiveProposer(
                self.model, block_size, sampling=sampling, suppressed_ids=target.suppressed_ids
            )
        assert self.kind == "ngram", "no drafter proposes nothing"
        return NGramProposer(block_size)


NGRAM = DrafterBundle("ngram", "ngram", None, "ngram", None, {})
"""Prompt look-up."""
NONE = DrafterBundle("none", "none", None, "none", None, {})
"""The target alone."""


def load_target_bundle(
    target: TargetConfig, *, default_template: str | None = None
) -> TargetBundle:
    """Opens the target that a run names.

    Args:
      target: where it lies, and in which dtype it computes.
      default_template: see `Tokenizer.load`.

    Raises:
      ValueError: no such folder, a model that is not supported, or a tokenizer that does not fit.
    """
    folder = target_folder(target.path)
    config, params = load_target(folder, dtype=target.dtype)
    config = dataclasses.replace(config, unroll_layers=config.num_layers <= UNROLLED_LAYERS)
    tokenizer = Tokenizer.load(
        folder, template_options=target.template_options, default_template=default_template
    )
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} ids, but the target's embedding "
            f"only {config.vocab_size} rows: they do not belong together."
        )
    name = target.path if target.path == "embedded" else folder_name(folder)
    return TargetBundle(name, make_model(config), params, tokenizer)


def load_drafter_bundle(folder: str | Path, *, target: TargetBundle) -> DrafterBundle:
    """Opens a drafter: a run's folder (with export/ inside), or a folder of weights.

    What its config.json describes decides the kind: a DFlash drafter, a masked-diffusion language
    model, or a language model that drafts token by token.

    Args:
      folder: where it lies.
      target: what it is to draft for; it computes in the target's dtype.

    Raises:
      ValueError: no exported weights there, a drafter for another target, or another tokenizer.
    """
    folder = Path(folder).expanduser()
    weights = exported_weights(folder)
    if is_denoiser(weights):
        return _denoiser(folder, weights, target=target)
    if is_target(weights):
        return _language_model(folder, weights, target=target)
    config, params = load_drafter(weights, target_config=target.config, dtype=target.config.dtype)
    config = resolve_config(
        dataclasses.replace(config, unroll_layers=config.num_layers <= UNROLLED_LAYERS),
        target=target.config,
        mask_token_id=target.tokenizer.mask_id,
    )
    record = _provenance(folder) or _provenance(weights)
    name = folder_name(folder)
    return DrafterBundle(
        name=name,
        loss=_recorded_loss(record) or name,
        seed=record.get("seed"),
        kind="dflash",
        model=DFlash(config, target.config.hidden_size),
        params=jax.device_put(params),
        trained_block=config.block_size,
    )


def _denoiser(folder: Path, weights: Path, *, target: TargetBundle) -> DrafterBundle:
    """A masked-diffusion language model as drafter.

    Its embedding may have other padding rows than the target's, and a row for its mask: what counts
    is that the ids of the tokenizer mean the same tokens.
    """
    config, params = load_denoiser(weights, dtype=target.config.dtype)
    config = dataclasses.replace(config, unroll_layers=config.num_layers <= UNROLLED_LAYERS)
    # The released MDLM has no tokenizer in its folder: it is that of GPT-2.
    if has_tokenizer(weights):
        check_same_tokens(Tokenizer.load(weights), target.tokenizer, name=str(folder))
    elif config.vocab_size != target.tokenizer.vocab_size + 1:
        raise ValueError(
            f"The drafter in {folder} has no tokenizer to compare with the target's, and an "
            f"embedding of {config.vocab_size} rows where {target.tokenizer.vocab_size} tokens and "
            "a mask are expected: put its tokenizer's files there."
        )
    if config.vocab_size < target.tokenizer.vocab_size:
        raise ValueError(
            f"The drafter in {folder} has an embedding of {config.vocab_size} rows, but the "
            f"tokenizer of {target.name} has {target.tokenizer.vocab_size} ids: it cannot read all "
            "of the target's tokens."
        )
    record = _provenance(folder) or _provenance(weights)
    run = record.get("config") or {}
    settings = run.get("denoiser") if isinstance(run, Mapping) else None
    settings = settings if isinstance(settings, Mapping) else {}
    name, goal = folder_name(folder), settings.get("objective")
    return DrafterBundle(
        name=name,
        loss=(_recorded_loss(record) if goal == "draft" else goal) or name,
        seed=record.get("seed"),
        kind="mdlm",
        model=make_denoiser(config),
        params=jax.device_put(params),
        trained_block=settings.get("block_size", 0) if goal == "draft" else 0,
    )


def _recorded_loss(record: Mapping[str, Any]) -> str | None:
    """The label of the loss that a run's provenance names, if it does."""
    run = record.get("config")
    loss = run.get("loss") if isinstance(run, Mapping) else None
    return _loss_label(loss) if isinstance(loss, Mapping) else None


def _language_model(folder: Path, weights: Path, *, target: TargetBundle) -> DrafterBundle:
    """A small language model as drafter."""
    config, params = load_target(weights, dtype=target.config.dtype)
    config = dataclasses.replace(config, unroll_layers=config.num_layers <= UNROLLED_LAYERS)
    check_same_tokens(Tokenizer.load(weights), target.tokenizer, name=str(folder))
    if config.vocab_size != target.config.vocab_size:
        raise ValueError(
            f"The drafter in {folder} has an embedding of {config.vocab_size} rows, the target "
            f"{target.name} one of {target.config.vocab_size}: verification compares distributions "
            "over the same ids."
        )
    seed = (_provenance(folder) or _provenance(weights)).get("seed")
    params = jax.device_put(params)
    return DrafterBundle(
        folder_name(folder), "autoregressive", seed, "autoregressive", make_model(config), params
    )


def folder_name(folder: Path) -> str:
    """What to call a folder in tables: its last part, or its run's where that is "export"."""
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "export" else resolved.name


def _provenance(folder: Path) -> dict[str, Any]:
    file = folder / "provenance.json"
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    return record if isinstance(record, dict) else {}


def _loss_label(loss: Mapping[str, Any]) -> str:
    """The label of a recorded `LossConfig`; fields of another version are passed over."""
    known = {field.name for field in dataclasses.fields(LossConfig)}
    values = {key: value for key, value in loss.items() if key in known}
    if isinstance(values.get("decay"), str):
        values["decay"] = math.inf  # JSON has no infinity: it is recorded as a string.
    return LossConfig(**values).label
