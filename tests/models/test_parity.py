"""The target against transformers, on small random models in float32.

Dimension key: B batch, S tokens, V vocabulary, D width, L layers.
"""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.huggingface import load_target, save_target
from jaxspec.models.cache import KVCache
from jaxspec.models.transformer import Transformer

TOLERANCE = 1e-4
BATCH, LENGTH = 2, 24

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
# Short enough for the tested positions to reach all three ranges of wavelengths.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen3_tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_untied_theta": {
        "model_type": "qwen3",
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    },
    "llama_untied": {"model_type": "llama", "num_key_value_heads": 4},
    "llama_tied_scaled": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3_ROPE,
    },
    "llama_biased": {"model_type": "llama", "attention_bias": True, "num_key_value_heads": 1},
    "qwen3_mixed_windows": {
        "model_type": "qwen3",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 4,
        "use_sliding_window": True,
    },
    "qwen3_last_layers_slide": {
        "model_type": "qwen3",
        "max_window_layers": 2,
        "sliding_window": 7,
        "use_sliding_window": True,
    },
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A torch model, its folder, and what it computes for `tokens_BS`."""

    folder: Path
    tokens_BS: np.ndarray
    logits_BSV: np.ndarray
    states: list[np.ndarray]
    """hidden_states: embedding, then the output of each block, the last one normed."""
    last_BSD: np.ndarray
    """Output of the last block before the final norm."""


@pytest.fixture(scope="module")
def torch() -> types.ModuleType:
    try:
        import torch
    except ImportError:
        pytest.skip("torch is not installed: no reference to compare with")
    return torch


def torch_logits(torch: types.ModuleType, model: Any, tokens_BS: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens_BS)).logits.numpy()


@pytest.fixture(scope="module", params=CASES)
def reference(
    request: pytest.FixtureRequest,
    torch: types.ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**COMMON, **CASES[request.param]})
    model: Any = AutoModelForCausalLM.from_config(config)
    model.eval().float()
    generator = torch.Generator().manual_seed(list(CASES).index(request.param))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from the initial values, at which many mistakes do not show.
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
            if name.endswith("o_proj.bias"):
                parameter.zero_()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)

    tokens_BS = np.random.default_rng(0).integers(0, COMMON["vocab_size"], (BATCH, LENGTH))
    kept: list[Any] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = model.model.layers[-1].register_forward_hook(keep)
    with torch.no_grad():
        output = model(torch.tensor(tokens_BS), output_hidden_states=True)
    handle.remove()
    return Reference(
        folder=folder,
        tokens_BS=tokens_BS,
        logits_BSV=output.logits.numpy(),
        states=[state.numpy() for state in output.hidden_states],
        last_BSD=kept[0].numpy(),
    )


def test_logits_and_captured_states_equal_those_of_transformers(reference: Reference) -> None:
    config, params = load_target(reference.folder)
    model: Any = Transformer(config)
    every_layer = tuple(range(config.num_layers))

    @jax.jit
    def run(params: Any, tokens_BS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        output = model.apply({"params": params}, tokens_BS, capture=every_layer)
        logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
        return logits_BSV, output.hidden_BSD, output.features_BSE

    logits_BSV, hidden_BSD, features_BSE = run(params, jnp.asarray(reference.tokens_BS))
    assert np.std(reference.logits_BSV) > 0.5, "the reference is too flat to tell anything"
    np.testing.assert_allclose(logits_BSV, reference.logits_BSV, atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(hidden_BSD, reference.states[-1], atol=TOLERANCE, rtol=TOLERANCE)
    captured = np.split(np.asarray(features_BSE), config.num_layers, axis=-1)
    for layer_id in range(config.num_layers - 1):
        np.testing.assert_allclose(
            captured[layer_id], reference.states[layer_id + 1], atol=TOLERANCE, rtol=TOLERANCE
        )
    np.testing.assert_allclose(captured[-1], reference.last_BSD, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    "reference",
    ["qwen3_tied", "llama_tied_scaled", "llama_biased", "qwen3_mixed_windows"],
    indirect=True,
)
def test_steps_with_a_cache_equal_one_pass_of_transformers(reference: Reference) -> None:
    config, params = load_target(reference.folder)
    model: Any = Transformer(config)
    tokens_BS = reference.tokens_BS
    cache = KVCache.create(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        batch=BATCH,
        capacity=LENGTH + 4,
    )

    @jax.jit
    def step(params: Any, cache: KVCache, part_BS: jax.Array) -> tuple[KVCache, jax.Array]:
        output = model.apply({"params": params}, part_BS, cache=cache)
        logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
        return cache.write(output.keys_LBRSC, output.values_LBRSC), logits_BSV

    # The rows advance at their own pace: of four tokens per step, row 0 keeps four and row 1 three;
    # the fourth is as a rejected draft, and comes again.
    starts = [0, 0]
    kept = [4, 3]
    for _ in range(LENGTH // 4):
        part_BS = np.stack([tokens_BS[b, starts[b] : starts[b] + 4] for b in range(BATCH)])
        cache, logits_BSV = step(params, cache, part_BS)
        for b in range(BATCH):
            np.testing.assert_allclose(
                logits_BSV[b],
                reference.logits_BSV[b, starts[b] : starts[b] + 4],
                atol=TOLERANCE,
                rtol=TOLERANCE,
            )
            starts[b] += kept[b]
        cache = cache.advance(jnp.asarray(kept))


def test_transformers_computes_the_same_from_an_export(
    reference: Reference, torch: types.ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    config, params = load_target(reference.folder)
    folder = tmp_path / "export"
    save_target(folder, config, params, eos_token_ids=(3, 5))
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    expected = "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"
    assert type(model).__name__ == expected
    assert not any(report.values()), report
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [3, 5]
    np.testing.assert_array_equal(
        torch_logits(torch, model.eval(), reference.tokens_BS), reference.logits_BSV
    )


def test_bfloat16_export_loads_on_both_sides_alike(
    reference: Reference, torch: types.ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config, params = load_target(reference.folder)
    folder = tmp_path / "export"
    save_target(folder, config, params, dtype="bfloat16")
    stored: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert stored.dtype == torch.bfloat16
    _, reloaded = load_target(folder)
    embedding = stored.get_input_embeddings().weight.float().detach().numpy()
    np.testing.assert_array_equal(reloaded["embed"]["embedding"], embedding)
