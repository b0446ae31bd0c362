"""Finds out from config.json which family a folder belongs to.

>>> sorted(FAMILIES)  # doctest: +NORMALIZE_WHITESPACE
['denoiser', 'dflash', 'gemma3', 'gemma3_text', 'gpt2', 'gpt_neo', 'gpt_neox', 'llada', 'llama',
 'mdlm', 'mistral', 'olmo2', 'phi3', 'qwen2', 'qwen3', 'qwen3_moe', 'sdar', 'smollm3']
>>> open_folder("Qwen3-4B").family.role  # doctest: +SKIP
'target'
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxspec.checkpoints.config_reader import read_bytes
from jaxspec.checkpoints.families import dflash, gpt2, gpt_neox, llada, mdlm, qwen_llama
from jaxspec.checkpoints.families.family import Family
from jaxspec.config import (
    DiTConfig,
    DrafterConfig,
    GPT2Config,
    GPTNeoXConfig,
    LanguageModelConfig,
    MaskedTransformerConfig,
)
from jaxspec.json_files import parse_object, shown
from jaxspec.paths import user_path

AnyDenoiserConfig = DiTConfig | MaskedTransformerConfig

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            mdlm.MDLM,
            llada.LLADA,
            llada.SDAR,
            # These have a target's layers: they come first, told apart by their own entries.
            qwen_llama.DENOISER,
            dflash.DFLASH,
            *qwen_llama.TARGETS,
            *gpt2.TARGETS,
            gpt_neox.TARGET,
        )
    }
)
"""The families by name, in the order in which they are tried."""


def family_of(raw: Mapping[str, Any]) -> Family | None:
    """The family that a config.json belongs to; None: jaxspec does not know it."""
    return next((family for family in FAMILIES.values() if family.recognises(raw)), None)


def target_family(config: LanguageModelConfig) -> Family:
    """The family that a target is written as.

    Raises:
      ValueError: layers that its family does not have.
    """
    if isinstance(config, GPT2Config | GPTNeoXConfig):
        return FAMILIES[config.family]
    return FAMILIES[qwen_llama.family_name(config)]


def target_from_json(raw: Mapping[str, Any], *, where: str) -> LanguageModelConfig:
    """The configuration of a target; a denoiser with such layers is read as one.

    Args:
      raw: the content of config.json.
      where: what to call it in messages.

    Raises:
      ValueError: another family, or features that the models here do not have; all at once.
    """
    name = raw.get("model_type")
    found = family_of(raw)
    if found is not None and found.role == "drafter":
        raise ValueError(
            f"{where} is that of a drafter, which answers nothing by itself: give its folder as "
            "the drafter (--drafter; eval.py: --workdir), and its target's as target.path."
        )
    if name == llada.SDAR_TYPE:
        return qwen_llama.from_json(raw, where=where, family="qwen3")
    family = FAMILIES.get(str(name))
    if family is None or family.role != "target":
        targets = [name for name, family in FAMILIES.items() if family.role == "target"]
        raise ValueError(_unknown(raw, targets, where=where))
    config: LanguageModelConfig = family.from_json(raw, where=where)
    return config


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A folder whose config.json has been read once, but not its weights."""

    folder: Path
    content: bytes
    """Content of config.json."""

    @functools.cached_property
    def raw(self) -> Mapping[str, Any]:
        """What config.json says.

        Raises:
          ValueError: see `jaxspec.json_files.parse_object`.
        """
        return parse_object(self.content, name=self.where)

    @property
    def where(self) -> str:
        """What to call config.json in messages."""
        return str(self.folder / "config.json")

    @functools.cached_property
    def family(self) -> Family:
        """The family that it belongs to.

        Raises:
          ValueError: jaxspec does not know the family.
        """
        family = family_of(self.raw)
        if family is None:
            raise ValueError(_unknown(self.raw, list(FAMILIES), where=self.where))
        return family

    @functools.cached_property
    def description(self) -> Any:
        """The configuration as the family reads it; a drafter's also describes its target."""
        return self.family.from_json(self.raw, where=self.where)

    @property
    def config(self) -> LanguageModelConfig | AnyDenoiserConfig | DrafterConfig:
        """The configuration; its dtypes are those of the stored weights."""
        found = self.description
        return found.config if isinstance(found, dflash.StoredDrafter) else found

    def as_target(self) -> LanguageModelConfig:
        """Its layers as those of a language model; a denoiser may have such layers too.

        Raises:
          ValueError: a family without such layers, or features that are not supported.
        """
        return target_from_json(self.raw, where=self.where)

    def as_denoiser(self) -> AnyDenoiserConfig:
        """A denoiser, or a target that is to become one.

        Raises:
          ValueError: no such model, or entries that do not describe one.
        """
        family = family_of(self.raw)
        if family is not None and family.role == "denoiser":
            config: AnyDenoiserConfig = self.description
            return config
        target = self.as_target()
        if isinstance(target, GPT2Config | GPTNeoXConfig):
            raise ValueError(
                f"{self.where}: a GPT-2, GPT-Neo or GPT-NeoX cannot become a denoiser: expected a "
                "Qwen, a Llama or a relative."
            )
        return qwen_llama.masked(target, where=self.where)

    def as_drafter(self) -> dflash.StoredDrafter:
        """A DFlash drafter.

        Raises:
          ValueError: not a DFlash drafter, or features that are not supported.
        """
        return dflash.from_json(self.raw, where=self.where)


Folder = str | os.PathLike[str] | StoredModel


def open_folder(folder: Folder) -> StoredModel:
    """Reads config.json of a folder.

    Args:
      folder: a model's folder, or one that has already been opened.

    Raises:
      ValueError: no config.json, or one that cannot be read.
    """
    if isinstance(folder, StoredModel):
        return folder
    path = user_path(folder)
    return StoredModel(path, read_bytes(path / "config.json"))


def _unknown(raw: Mapping[str, Any], expected: list[str], *, where: str) -> str:
    named = raw.get("architectures")
    return (
        f"{where}: model_type is {shown(raw.get('model_type'))}, expected "
        f"{' or '.join(map(repr, expected))}"
        f"{f' (architectures: {shown(named)})' if named else ''}."
    )
