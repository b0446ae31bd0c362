"""A pass that computes something else is caught, and sound ones agree for each kind of target."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxspec.checkpoints.huggingface import save_target
from jaxspec.cli.export import ExportCommand, export
from jaxspec.config import GPT2Config, LanguageModelConfig, TargetConfig, TransformerConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.evals.opening import TargetBundle, open_target
from jaxspec.models.registry import make_model
from jaxspec.parity import comparison, passes, sources
from jaxspec.parity.comparison import compare
from jaxspec.parity.findings import Finding
from jaxspec.training.draft_pass import Text
from tests.parity import trained

BY_TRAINING = ["drafts: training, decoding", "drafts: training, independent"]
LEARNED: Any = {"questions": trained.QUESTIONS, "new_tokens": trained.NEW_TOKENS}
BY_DECODING = ["drafts: training, decoding", "drafts: decoding, independent"]


def found(run: Path, target: str, **options: Any) -> list[Finding]:
    return compare(TargetConfig(path=target), str(run), say=lambda _: None, **options)


def failures(run: Path) -> list[str]:
    findings = found(run, "embedded", with_variants=False, **LEARNED)
    return [finding.name for finding in findings if finding.status == "FAIL"]


def test_training_with_a_mask_in_slot_0(
    run_folder: Path, target: TargetBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert target.mask_id is not None
    fault = trained.mask_in_slot_0(target.mask_id)
    monkeypatch.setattr(passes, "training_pass", trained.faulty_pass(fault))
    assert failures(run_folder) == BY_TRAINING


def test_training_without_the_context_norm(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = trained.without_context_norm
    monkeypatch.setattr(passes, "training_pass", trained.faulty_pass(fault))
    assert failures(run_folder) == BY_TRAINING


def test_decoding_that_is_told_another_anchor(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = passes._round

    def fault(params: Any, state: Any, cache: Any, block_BK: Any, *rest: Any, **named: Any) -> Any:
        return sound(params, state, cache, block_BK + 1, *rest, **named)

    monkeypatch.setattr(passes, "_round", fault)
    assert set(BY_DECODING) <= set(failures(run_folder))


def test_a_target_that_is_computed_differently(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = sources.TransformersTarget.states
    monkeypatch.setattr(
        sources.TransformersTarget,
        "states",
        lambda self, tokens: [1.01 * state for state in sound(self, tokens)],
    )
    assert comparison._LAYERS in failures(run_folder)


def test_format_of_speculators(run_folder: Path, tmp_path: Path) -> None:
    provenance = run_folder / "export" / "provenance.json"
    (run_folder / "provenance.json").write_bytes(provenance.read_bytes())
    export(
        ExportCommand(
            workdir=str(run_folder),
            output=str(tmp_path / "out"),
            format="speculators",
            dtype="float32",
        )
    )
    findings = found(tmp_path / "out", "embedded", **LEARNED)
    assert {finding.status for finding in findings} == {"ok"}
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    # Servers draft as many tokens as this says.
    config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] = 3
    file.write_text(json.dumps(config))
    assert "read alike: block size" in failures(tmp_path / "out")


def test_a_drafter_that_leaves_its_mask_to_the_target(run_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    file = run / "export" / "config.json"
    config = json.loads(file.read_text())
    del config["dflash_config"]["mask_token_id"]
    file.write_text(json.dumps(config))
    assert not failures(run)


@pytest.mark.parametrize(
    ("rows", "tokens", "status"),
    [
        (1025, (5, 1), "ok"),  # As in GPT-2: every other row is text.
        (1025, (1, 5), "FAIL"),
        (1028, (5, 1), "FAIL"),  # There are rows without a token.
    ],
)
def test_a_mask_that_ends_texts_needs_a_target_without_an_unused_row(
    rows: int, tokens: tuple[int, ...], status: str
) -> None:
    target: Any = SimpleNamespace(
        config=SimpleNamespace(vocab_size=rows), stop_ids=(1,), reserved_ids=range(1025, rows)
    )
    finding = comparison._mask_row(target, 1, [Text(tokens, (0,))])
    assert finding.status == status
    assert ("choose an unused row" in finding.detail) == (rows == 1028)


SHAPE = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 128}
ROTATED = {"num_kv_heads": 2, "head_dim": 8, "intermediate_size": 48, "tie_embeddings": False}
VOCABULARY = Tokenizer.load("embedded").vocab_size + 3
TARGETS: dict[str, LanguageModelConfig] = {
    "qwen3": TransformerConfig(vocab_size=VOCABULARY, **SHAPE, **ROTATED),
    "llama": TransformerConfig(vocab_size=VOCABULARY, **SHAPE, **ROTATED, qk_norm=False),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, **SHAPE, intermediate_size=64),
}
OTHERS = pytest.mark.slow("other cases have this target and these layers")
EMBEDDED = pytest.mark.slow("the embedded target, which test_sound asks, is such a one")
SLIDING = {"layer_types": ("sliding_attention", "full_attention"), "sliding_window": 7}


@functools.cache
def random_weights(name: str) -> Any:
    model = make_model(TARGETS[name])
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32))["params"])
    return init(jax.random.key(3))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("qwen3", {}, marks=EMBEDDED, id="qwen3, full"),
        pytest.param("qwen3", SLIDING, marks=OTHERS, id="qwen3, sliding"),
        pytest.param("llama", SLIDING, id="llama, sliding"),
        pytest.param("gpt2", {}, marks=OTHERS, id="gpt2, full"),
        pytest.param("gpt2", SLIDING, id="gpt2, sliding"),
    ],
)
def test_random_targets(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = Tokenizer.load("embedded").folder
    path = tmp_path / "target"
    save_target(path, TARGETS[name], random_weights(name), tokenizer_folder=folder)
    target = open_target(TargetConfig(path=str(path)))
    # The last block too, which servers see after the final norm.
    drafter = trained.network(target, target_layer_ids=(1, 3), block_size=4, **changes)
    run = trained.export(
        tmp_path / "run", target, str(path), drafter, trained.initial(target, drafter)
    )
    findings = found(run, str(path), new_tokens=8)
    assert {finding.status for finding in findings} == {"ok"}, findings
