"""One look at config.json tells a folder's family; what was read is what is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from jaxspec.checkpoints.denoiser import read_denoiser
from jaxspec.checkpoints.families.registry import FAMILIES, family_of, open_folder, target_family
from jaxspec.checkpoints.folders import EMBEDDED_TARGET
from jaxspec.checkpoints.huggingface import load_target, read_config, save_target
from jaxspec.config import EvaluationConfig, RunConfig, TargetConfig, TransformerConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.evals.diffusion.runner import evaluate_diffusion
from jaxspec.evals.opening import open_diffusion_target, stored_target
from jaxspec.models.registry import make_model
from tests.evals.diffusion_folders import write_model

TINY = TransformerConfig(
    vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    intermediate_size=24, qk_norm=False,
)  # fmt: skip


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """Every config.json that is read, one entry per time."""
    found: list[Path] = []
    for method in ("open", "read_bytes", "read_text"):
        original = getattr(Path, method)

        def counted(self, *args, _original=original, _method=method, **kwargs):
            # Path.read_bytes and read_text call open themselves: count only those.
            if self.name == "config.json" and _method == "open":
                found.append(self)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Path, method, counted)
    return found


@pytest.mark.parametrize("llada", [True, False])
def test_config_json_is_read_once_where_a_diffusion_model_is_opened(tmp_path, reads, llada):
    folder = write_model(tmp_path / "model", llada=llada, num_heads=2, num_kv_heads=2)
    target = TargetConfig(path=str(folder))
    reads.clear()
    stored = stored_target(target)
    assert open_diffusion_target(target, stored=stored).with_weights().params
    assert reads == [folder / "config.json"]


def test_a_whole_evaluation_reads_it_once(tmp_path, reads):
    folder = write_model(tmp_path / "model", llada=True, num_heads=2, num_kv_heads=2)
    config = RunConfig(
        target=TargetConfig(path=str(folder)),
        evaluation=EvaluationConfig(
            benchmarks=("embedded/math",), prompts=1, max_new_tokens=32, timing_prompts=0
        ),
    )
    reads.clear()
    evaluate_diffusion(config, output=tmp_path / "out.json", echo=lambda line: None)
    assert [path for path in reads if path.parent == folder] == [folder / "config.json"]


def test_families_have_roles_of_their_own():
    roles = {name: family.role for name, family in FAMILIES.items()}
    assert {n for n, role in roles.items() if role == "denoiser"} == {
        "mdlm", "llada", "sdar", "denoiser"
    }  # fmt: skip
    assert {n for n, role in roles.items() if role == "drafter"} == {"dflash"}


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "qwen3"),
        ({"model_type": "qwen3", "architectures": ["DFlashDraftModel"]}, "dflash"),
        ({"model_type": "qwen3", "denoiser": {}}, "denoiser"),
        ({"model_type": "sdar"}, "sdar"),
        ({"speculators_model_type": "dflash"}, "dflash"),
        ({"model_type": "bert"}, None),
    ],
)
def test_a_family_is_told_by_the_most_particular_entry(raw, name):
    found = family_of(raw)
    assert (found and found.name) == name


def test_a_drafter_is_no_target(tmp_path):
    """Its config.json has a target's sizes, so that only its tensors would not fit."""
    document = json.loads((EMBEDDED_TARGET / "config.json").read_text())
    document["architectures"] = ["DFlashDraftModel"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"that of a drafter, .*--drafter"):
        read_config(tmp_path)


def test_the_family_that_was_read_is_written(tmp_path):
    config, params = load_target(EMBEDDED_TARGET)
    assert config.family == "qwen3"
    save_target(tmp_path / "out", config, params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen3"
    assert read_denoiser(EMBEDDED_TARGET).family == "qwen3"
    assert read_config(tmp_path / "out").family == "qwen3"


def test_a_family_that_does_not_go_with_the_layers_is_refused(tmp_path):
    # A configuration of an older run names no family: its norms decide, as they did.
    assert target_family(TINY).name == "llama"
    assert target_family(dataclasses.replace(TINY, qk_norm=True)).name == "qwen3"
    wrong = dataclasses.replace(TINY, family="qwen3")
    tokens_BS = jax.ShapeDtypeStruct((1, 4), "int32")
    params = jax.eval_shape(make_model(wrong).init, jax.random.key(0), tokens_BS)["params"]
    with pytest.raises(ValueError, match=r"qwen3 of this shape \(qk_norm: got False, exp"):
        save_target(tmp_path / "out", wrong, params)
    assert not (tmp_path / "out").exists()


def test_a_family_that_transformers_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"is 'gpt2', expected 'qwen3' or .*, or ''"):
        target_family(dataclasses.replace(TINY, family="gpt2"))


@pytest.mark.parametrize("raw", [{"model_type": "gpt2"}, {"model_type": "gemma"}, {}])
def test_a_denoiser_of_another_family_is_refused(tmp_path, raw):
    (tmp_path / "config.json").write_text(json.dumps({**raw, "denoiser": {}}))
    with pytest.raises(ValueError, match=r"model_type is .*, expected 'qwen3' or 'llama'"):
        read_denoiser(tmp_path)


def test_a_template_in_a_file_of_its_own_survives_an_export(tmp_path):
    """Some folders keep the only chat template in chat_template.json."""
    source = tmp_path / "source"
    shutil.copytree(EMBEDDED_TARGET, source)
    tokenizer = json.loads((source / "tokenizer_config.json").read_text())
    template = tokenizer.pop("chat_template")
    (source / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (source / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    config, params = load_target(source)
    save_target(tmp_path / "out", config, params, tokenizer_folder=source)
    question = [{"role": "user", "content": "2 + 2?"}]
    exported = Tokenizer.load(tmp_path / "out")
    assert exported.has_template
    assert exported.encode_prompt(question) == Tokenizer.load(EMBEDDED_TARGET).encode_prompt(
        question
    )


def test_an_opened_folder_is_taken_as_it_is():
    stored = open_folder(EMBEDDED_TARGET)
    assert open_folder(stored) is stored
