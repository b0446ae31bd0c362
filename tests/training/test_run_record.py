"""Configurations come back from JSON as they were."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal

import pytest

from jaxspec.config import (
    DiTConfig,
    GPT2Config,
    LanguageModelConfig,
    MaskedTransformerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)
from jaxspec.provenance import jsonable, provenance, write_json
from jaxspec.training.run_record import from_jsonable, read_run_config, recorded_config


@dataclasses.dataclass(frozen=True)
class Term:
    name: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """A field of every kind that configurations have or may come to have."""

    model: LanguageModelConfig | None = None
    network: DiTConfig | MaskedTransformerConfig | TransformerConfig | None = None
    terms: tuple[Term, ...] = ()
    pairs: tuple[tuple[str, float], ...] = ()
    size: tuple[int, str] = (1, "a")
    scale: float | None = None
    label: float | str = "inf"
    either: Term | tuple[str, ...] = ()
    kind: Literal["a", "b"] | None = None


def again(settings: Settings) -> Settings:
    return from_jsonable(Settings, json.loads(json.dumps(jsonable(settings))), where="settings")


def test_configurations_survive_json(tmp_path):
    architecture = TransformerConfig(
        num_layers=2, layer_types=("full_attention", "sliding_attention"), sliding_window=8
    )
    config = RunConfig(target=TargetConfig(architecture=architecture))
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, decay=float("inf")))
    write_json(tmp_path / "provenance.json", provenance(config=config, seed=0))
    assert read_run_config(tmp_path) == config


@pytest.mark.parametrize(
    ("task", "sampling"), [("drafter", "row"), ("denoiser", "row"), ("target", "document")]
)
def test_older_runs_drew_their_anchors_by_row(task, sampling):
    recorded = jsonable(RunConfig(training=TrainingConfig(task=task)))
    del recorded["data"]["anchor_sampling"]
    assert recorded_config(recorded, where="config").data.anchor_sampling == sampling
    recorded["data"]["anchor_sampling"] = "document"
    assert recorded_config(recorded, where="config").data.anchor_sampling == "document"


@pytest.mark.parametrize("model", [GPT2Config(), GPT2Config(family="gpt_neo"), TransformerConfig()])
def test_a_union_of_models_finds_its_member(model):
    assert again(Settings(model=model)) == Settings(model=model)


@pytest.mark.parametrize(
    "network", [DiTConfig(), MaskedTransformerConfig(mask_token_id=3), TransformerConfig(), None]
)
def test_a_model_whose_fields_another_one_has_too(network):
    """A masked transformer has all fields of a transformer."""
    assert again(Settings(network=network)) == Settings(network=network)


def test_tuples_scalars_and_their_unions():
    settings = Settings(
        terms=(Term("focal", math.inf), Term("chain")),
        pairs=(("a", 0.5), ("b", -math.inf)),
        size=(3, "x"),
        scale=math.inf,
        kind="b",
    )
    assert again(settings) == settings
    for either in (Term("x"), ("y", "z"), ()):
        assert again(Settings(either=either)) == Settings(either=either)


def test_what_an_older_version_did_not_write_keeps_its_default():
    value = {"model": {"hidden_size": 16, "qk_norm": False}, "terms": [{"name": "a"}]}
    found = from_jsonable(Settings, value, where="settings")
    assert found.model == dataclasses.replace(TransformerConfig(), hidden_size=16, qk_norm=False)
    assert found == dataclasses.replace(found, terms=(Term("a"),), scale=None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sizes": 1}, "settings has settings that this version .* does not know: sizes"),
        ({"model": {"wings": 2}}, r"settings\.model has settings .* wings"),
        ({"terms": [{"name": "a"}, {"nam": "b"}]}, r"settings\.terms\[1\] has settings .* nam\."),
    ],
)
def test_unknown_settings_are_named_with_their_place(value, message):
    with pytest.raises(ValueError, match=message):
        from_jsonable(Settings, value, where="settings")
