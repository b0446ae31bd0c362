"""Every family of transformers against transformers, on small random models in float32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.family_parity import CASES, COMMON, make_reference, measure
from jaxspec.checkpoints.families.kinds import KINDS
from jaxspec.checkpoints.families.qwen_llama import DENOISER
from jaxspec.checkpoints.families.registry import open_folder
from jaxspec.checkpoints.huggingface import load_target, save_target
from jaxspec.config import ExpertsConfig, MaskedTransformerConfig, TransformerConfig
from jaxspec.models.registry import make_denoiser, make_model

TOLERANCE = 1e-4


COVERED = {
    "qwen2_yarn": "qwen3_yarn has this scaling, and qwen2 this family",
    "mistral_full": "mistral has this family, and llama_linear a head width of its own",
    "olmo2_linear": "llama_linear has this scaling, and olmo2 this family",
}
"""Cases that need not run each time."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow(COVERED[name]) if name in COVERED else ())
        for name in CASES
    ],
)
def test_a_family_equals_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: no reference to compare with")
    reference = make_reference(CASES[name], tmp_path)
    assert reference.logits_BSV.std() > 0.5, "the reference is too flat to tell anything"
    found = measure(reference, tmp_path / "export")
    assert max(found.logits, found.states, found.cached) < TOLERANCE
    assert found.greedy == 0
    assert found.export == 0.0


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == set(KINDS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_in_shards_is_read_as_stored(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to write with")
    from transformers import AutoModelForCausalLM

    reference = make_reference(CASES["qwen3_moe_mixed"], tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    folder = tmp_path / "shards"
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    config, params = load_target(folder)
    mlps, experts = params["layers"]["mlp"], params["layers"]["experts"]
    stored = {
        (): (params["embed"]["embedding"], "model.embed_tokens.weight"),
        (1,): (experts["router"]["kernel"], "model.layers.1.mlp.gate.weight"),
        (2,): (mlps["down"]["kernel"], "model.layers.2.mlp.down_proj.weight"),
    }
    for place, (parameter, name) in stored.items():
        expected = model.state_dict()[name].float().numpy()
        np.testing.assert_array_equal(parameter[place], expected.T if place else expected)
    output = jax.jit(make_model(config).apply)({"params": params}, reference.tokens_BS)
    with torch.no_grad():
        states = model.float()(torch.tensor(reference.tokens_BS), output_hidden_states=True)
    np.testing.assert_allclose(
        output.hidden_BSD, states.hidden_states[-1].numpy(), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    config = TransformerConfig(
        family="qwen3_moe", hidden_size=16, vocab_size=20, num_layers=2, head_dim=8,
        max_position_embeddings=32, intermediate_size=8,
        experts=ExpertsConfig(num_experts=3, per_token=2, width=8),
    )  # fmt: skip
    tokens_BS = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(make_model(config).init)(jax.random.key(0), tokens_BS)["params"]
    save_target(tmp_path / "out", config, params)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**raw, "num_experts": 4}))
    with pytest.raises(ValueError, match=r"experts\.3\.gate_proj\.weight: missing"):
        load_target(tmp_path / "out")


def test_a_denoiser_can_start_from_any_family(tmp_path: Path) -> None:
    config = TransformerConfig(
        family="gemma3_text", hidden_size=16, vocab_size=20, num_layers=2, head_dim=8, num_heads=2,
        max_position_embeddings=32, norms="around", norm_offset=True, activation="gelu_tanh",
        scale_embeddings=True, query_pre_attn_scalar=8.0, sliding_rope_theta=50.0,
        layer_types=("sliding_attention", "full_attention"), sliding_window=4,
    )  # fmt: skip
    tokens_BS = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(make_model(config).init)(jax.random.key(0), tokens_BS)["params"]
    save_target(tmp_path / "out", config, params)
    denoiser = open_folder(tmp_path / "out").as_denoiser()
    assert isinstance(denoiser, MaskedTransformerConfig)
    assert denoiser.scale_embeddings and denoiser.norms == "around"
    output = jax.jit(make_denoiser(denoiser).apply)({"params": params}, tokens_BS)
    assert np.isfinite(output.logits_BSV).all()
    document = DENOISER.to_json(denoiser, dtype="float32", special_ids={})
    again = DENOISER.from_json(document, where="FILE")
    assert dataclasses.replace(again, mask_token_id=None) == denoiser


def test_the_text_model_of_a_gemma_that_reads_images(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: no reference")
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**COMMON, **CASES["gemma3"].document, "pad_token_id": 0}
    vision = dict.fromkeys(("hidden_size", "intermediate_size", "image_size"), 16)
    config = Gemma3Config(
        text_config={key: value for key, value in text.items() if key != "torch_dtype"},
        vision_config={
            **vision, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8
        },
        mm_tokens_per_image=4, boi_token_index=58, eoi_token_index=59, image_token_index=60,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    tokens_BS = np.random.default_rng(0).integers(0, 50, (2, 12))
    with torch.no_grad():
        states = model(torch.tensor(tokens_BS), output_hidden_states=True).hidden_states
    ours, params = load_target(tmp_path)
    assert ours.family == "gemma3_text"
    output = jax.jit(make_model(ours).apply)({"params": params}, tokens_BS)
    np.testing.assert_allclose(
        output.hidden_BSD, states[-1].numpy(), atol=TOLERANCE, rtol=TOLERANCE
    )
    save_target(tmp_path / "text", ours, params)
    assert load_target(tmp_path / "text")[0] == ours
