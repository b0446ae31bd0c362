"""The kinds of drafters."""

from __future__ import annotations

import pytest

from jaxspec.config import (
    DiTConfig,
    DrafterConfig,
    GPT2Config,
    LossConfig,
    MaskedTransformerConfig,
    TransformerConfig,
)
from jaxspec.drafters.registry import KINDS, kind_of


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DrafterConfig(), "dflash"),
        (DiTConfig(), "mdlm"),
        (MaskedTransformerConfig(mask_token_id=3), "mdlm"),
        (TransformerConfig(), "autoregressive"),
        (GPT2Config(), "autoregressive"),
    ],
)
def test_a_configuration_tells_the_kind(config, name):
    assert kind_of(config) == name


def test_a_configuration_that_no_kind_drafts_with():
    with pytest.raises(
        ValueError, match="a LossConfig: expected the configuration of one of dflash, mdlm"
    ):
        kind_of(LossConfig())


def test_kinds_are_complete():
    assert [name for name, kind in KINDS.items() if not kind.drafts] == ["none"]
    assert [name for name, kind in KINDS.items() if not kind.is_trained] == ["ngram", "none"]
    for kind in KINDS.values():
        assert kind.is_trained == (kind.network is not None)


@pytest.mark.parametrize(
    ("kind", "run", "loss", "block"),
    [
        ("dflash", {"loss": {"decay": "inf", "focal": 0, "chain": 0, "old": 1}}, "uniform", 16),
        ("dflash", {}, None, 16),
        ("mdlm", {"denoiser": {"objective": "elbo", "block_size": 8}}, "elbo", 0),
        ("mdlm", {"denoiser": {"objective": "draft", "block_size": 8}, "loss": {}}, "full", 8),
        ("autoregressive", {"loss": {}}, "autoregressive", 0),
    ],
)
def test_what_a_run_recorded(kind, run, loss, block):
    config = DrafterConfig(block_size=16) if kind == "dflash" else None
    history = KINDS[kind].history(config, run)
    assert (history.loss, history.block_size) == (loss, block)
