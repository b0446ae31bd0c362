"""GPT-NeoX against transformers: one pass, steps with a cache, greedy text, exports.

Dimension key: B batch, S tokens, V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.families.registry import target_family
from jaxspec.checkpoints.huggingface import load_target, read_config, save_target
from jaxspec.config import DrafterConfig, GPTNeoXConfig, Llama3RopeScaling, TransformerConfig
from jaxspec.decoding import Autoregressive, DecodeRules, generate
from jaxspec.models.cache import KVCache
from jaxspec.models.dflash import resolve_config
from jaxspec.models.gpt_neox import GPTNeoX
from jaxspec.models.registry import make_model

TOLERANCE = 1e-4
BATCH, LENGTH, VOCABULARY = 2, 24, 61
LAYERS = 3

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-3,
}
CASES: dict[str, dict[str, Any]] = {
    "pythia": {"rotary_pct": 0.25},
    "in_a_row": {
        "use_parallel_residual": False,
        "attention_bias": False,
        "rotary_pct": 1.0,
        "rotary_emb_base": 500,
        "hidden_act": "gelu_new",
    },
    "tied": {"rotary_pct": 0.5, "hidden_act": "relu", "tie_word_embeddings": True},
    "one_head": {"num_attention_heads": 1, "rotary_pct": 0.25, "hidden_act": "gelu_fast"},
    "scaled": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.75,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        "hidden_act": "gelu_pytorch_tanh",
    },
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A torch model, its folder, and what it computes for `tokens_BS`."""

    name: str
    folder: Path
    model: Any
    tokens_BS: np.ndarray
    logits_BSV: np.ndarray
    states: list[np.ndarray]
    """Output of each block, before the final norm."""


@pytest.fixture(scope="module")
def torch() -> types.ModuleType:
    try:
        import torch
    except ImportError:
        pytest.skip("torch is not installed: no reference to compare with")
    return torch


@pytest.fixture(scope="module", params=CASES)
def reference(
    request: pytest.FixtureRequest,
    torch: types.ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(**{**SIZES, **CASES[request.param]}, bos_token_id=0, eos_token_id=0)
    model: Any = GPTNeoXForCausalLM(config).eval().float()
    generator = torch.Generator().manual_seed(list(CASES).index(request.param))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from the initial values, at which many mistakes do not show.
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_scale else 0.2 * noise)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokens_BS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH))
    states: list[np.ndarray] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).numpy())

    handles = [layer.register_forward_hook(keep) for layer in model.gpt_neox.layers]
    with torch.no_grad():
        logits_BSV = model(torch.tensor(tokens_BS)).logits.numpy()
    for handle in handles:
        handle.remove()
    return Reference(request.param, folder, model, tokens_BS, logits_BSV, states)


def assert_close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_logits_and_captured_states_equal_those_of_transformers(reference: Reference) -> None:
    config, params = load_target(reference.folder)
    model: Any = make_model(config)
    assert isinstance(model, GPTNeoX)

    @jax.jit
    def run(params: Any, tokens_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = model.apply({"params": params}, tokens_BS, capture=tuple(range(LAYERS)))
        logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
        return logits_BSV, output.features_BSE

    logits_BSV, features_BSE = run(params, jnp.asarray(reference.tokens_BS))
    assert np.std(reference.logits_BSV) > 0.5, "the reference is too flat to tell anything"
    assert_close(logits_BSV, reference.logits_BSV)
    for got, expected in zip(
        np.split(np.asarray(features_BSE), LAYERS, axis=-1), reference.states, strict=True
    ):
        assert_close(got, expected)


def test_steps_with_a_cache_equal_one_pass_of_transformers(reference: Reference) -> None:
    config, params = load_target(reference.folder)
    model: Any = make_model(config)
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
    starts, kept = [0, 0], [4, 3]
    for _ in range(LENGTH // 4):
        parts = [reference.tokens_BS[b, starts[b] : starts[b] + 4] for b in range(BATCH)]
        cache, logits_BSV = step(params, cache, np.stack(parts))
        for b in range(BATCH):
            assert_close(logits_BSV[b], reference.logits_BSV[b, starts[b] : starts[b] + 4])
            starts[b] += kept[b]
        cache = cache.advance(jnp.asarray(kept))


@pytest.mark.parametrize(
    "reference",
    [
        "pythia",
        *(
            pytest.param(name, marks=pytest.mark.slow("its logits and cached steps are compared"))
            for name in CASES
            if name != "pythia"
        ),
    ],
    indirect=True,
)
def test_greedy_text_is_that_of_generate(reference: Reference, torch: types.ModuleType) -> None:
    config, params = load_target(reference.folder)
    prompts = [reference.tokens_BS[0, :5].tolist(), reference.tokens_BS[1, :9].tolist()]
    strategy = Autoregressive(make_model(config), DecodeRules(16, stop_ids=(0,)))
    responses = generate(strategy, params, prompts, ids=["a", "b"], batch_size=2)
    for prompt, response in zip(prompts, responses, strict=True):
        ids = reference.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=16,
            pad_token_id=0,
        )
        assert response.tokens == tuple(ids[0, len(prompt) :].tolist())


def test_transformers_computes_the_same_from_an_export(
    reference: Reference, torch: types.ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config, params = load_target(reference.folder)
    save_target(tmp_path / "export", config, params, eos_token_ids=(0,))
    assert read_config(tmp_path / "export") == config
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    model, report = loaded
    assert type(model).__name__ == "GPTNeoXForCausalLM"
    assert not any(report.values()), report
    with torch.no_grad():
        logits_BSV = model.eval()(torch.tensor(reference.tokens_BS)).logits.numpy()
    assert_close(logits_BSV, reference.logits_BSV)
    for name, expected in reference.model.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], expected)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_files_of_older_versions(tmp_path: Path) -> None:
    """The names of the released Pythia: rotary_pct and rotary_emb_base, no rope_parameters."""
    document = {
        **SIZES,
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "rotary_pct": 0.5,
        "rotary_emb_base": 1000,
        "torch_dtype": "float16",
        "use_parallel_residual": True,
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    config = read_config(tmp_path)
    assert isinstance(config, GPTNeoXConfig)
    assert (config.rotary_dim, config.rope_theta, config.dtype) == (4, 1000.0, "float32")
    assert config.parallel_residual and config.attention_bias and not config.tie_embeddings
    asked = DrafterConfig(num_features=2)
    drafter = resolve_config(asked, target=config, mask_token_id=3)
    assert drafter.rope_theta == 1000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "quick_gelu"}, "hidden_act: got 'quick_gelu', expected 'gelu' or"),
        ({"num_attention_heads": 5}, "hidden_size: got 32, expected a multiple of num_attention"),
        ({"rotary_pct": 0.2}, "rotary_pct: got 0.2, which rotates 1 of 8 channels"),
        ({"rotary_pct": 1.5}, "rotary_pct: got 1.5, expected a number from 0 to 1"),
        (
            {"rotary_pct": 1.0, "rope_parameters": {"partial_rotary_factor": 0.5}},
            "rotary_pct: got .* expected the same in both places",
        ),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type: got 'dynamic'"),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling: got .*'llama3'.*, expected what rope_parameters says .*'default'",
        ),
        ({"use_parallel_residual": 1}, "use_parallel_residual: got 1, expected true or false"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    document = {**SIZES, "model_type": "gpt_neox", **changes}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_scaling_is_said_in_both_ways() -> None:
    """transformers 4 reads rope_scaling alone."""
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_type"}
    config = GPTNeoXConfig(rope_scaling=Llama3RopeScaling(**scaling))
    document = target_family(config).to_json(config, dtype="float32", special_ids={})
    assert document["rope_scaling"] == LLAMA3
    assert document["rope_parameters"].items() >= LLAMA3.items()
    plain = target_family(config).to_json(GPTNeoXConfig(), dtype="float32", special_ids={})
    assert plain["rope_scaling"] is None


@pytest.mark.parametrize("head_dim", [64, 88, 100, 104, 128])
def test_every_share_of_rotated_channels_is_read_back(head_dim: int) -> None:
    family = target_family(GPTNeoXConfig())
    for channels in range(2, head_dim + 1, 2):
        config = GPTNeoXConfig(hidden_size=2 * head_dim, num_heads=2, rotary_dim=channels)
        document = family.to_json(config, dtype="float32", special_ids={})
        assert family.from_json(document, where="x") == config
        # As in transformers.
        assert int(head_dim * document["rope_parameters"]["partial_rotary_factor"]) == channels


def test_registry() -> None:
    assert isinstance(make_model(GPTNeoXConfig()), GPTNeoX)
    assert not isinstance(make_model(TransformerConfig()), GPTNeoX)
    with pytest.raises(ValueError, match="rotary_dim must be even and at most the width of a head"):
        GPTNeoXConfig(rotary_dim=66)
