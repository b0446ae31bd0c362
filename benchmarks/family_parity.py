"""Every family of transformers against transformers itself, as a table in Markdown.

    python benchmarks/family_parity.py                  all of them, about two minutes on a CPU
    python benchmarks/family_parity.py gemma3_text      one family

Each row is a small random model that transformers made and saved (float32, needs torch: the extra
"test"). Its folder is opened here. The figures are the largest absolute differences: of logits, of
the captured output of every layer, and of logits computed in steps with a cache, several tokens and
single ones, beyond every sliding window. "greedy" counts tokens that differ from generate(),
"export" is the difference of logits after saving the model and opening it in transformers.

Dimension key: B batch rows, S tokens of a text, V vocabulary, D width.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoints.huggingface import load_target, save_target
from jaxspec.config import LanguageModelConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.registry import make_model

BATCH, LENGTH, STEP, GENERATED = 2, 24, 4, 6
COMMON: Mapping[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "max_position_embeddings": 128,
    # What public files say; the weights here are in float32 all the same.
    "torch_dtype": "bfloat16",
    # Those of transformers lie outside of so small a vocabulary.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@dataclasses.dataclass(frozen=True)
class Case:
    """One small model."""

    features: str
    """What it shows, for the table."""
    document: Mapping[str, Any]
    """config.json, but for `COMMON`."""

    @property
    def family(self) -> str:
        """Its model type."""
        return str(self.document["model_type"])


def _case(features: str, model_type: str, **document: Any) -> Case:
    return Case(features, {"model_type": model_type, **document})


CASES: Mapping[str, Case] = {
    "qwen2": _case(
        "QKV biases, tied, window switched off", "qwen2", tie_word_embeddings=True,
        sliding_window=32_768, max_window_layers=1, use_sliding_window=False,
    ),
    "qwen2_sliding": _case(
        "last layers slide, untied", "qwen2",
        sliding_window=5, max_window_layers=1, use_sliding_window=True,
    ),
    "qwen2_yarn": _case(
        "YaRN", "qwen2", rope_scaling={"type": "yarn", **YARN, "factor": 2.0},
    ),
    "qwen3_yarn": _case(
        "QK norm, YaRN with its own attention factor", "qwen3", head_dim=16,
        rope_scaling={**YARN, "attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2},
    ),
    "llama_linear": _case(
        "linear scaling", "llama", rope_scaling={"type": "linear", "factor": 3.0}, head_dim=24,
    ),
    "llama_yarn": _case(
        "YaRN with mscale, not truncated", "llama",
        rope_scaling={**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False},
    ),
    "mistral": _case(
        "all layers slide, GQA, untied", "mistral", sliding_window=5, tie_word_embeddings=False,
    ),
    "mistral_full": _case(
        "no window, own head width, tied", "mistral", sliding_window=None, head_dim=12,
        tie_word_embeddings=True,
    ),
    "qwen3_moe": _case(
        "experts in every layer, QK norm", "qwen3_moe", head_dim=16, moe_intermediate_size=24,
        num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "qwen3_moe_mixed": _case(
        "experts and MLPs, not renormalised, biases, all layers slide, tied", "qwen3_moe",
        num_hidden_layers=4, head_dim=16, moe_intermediate_size=20, num_experts=5,
        num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[3],
        attention_bias=True, use_sliding_window=True, sliding_window=6, tie_word_embeddings=True,
    ),
    "gemma3": _case(
        "sliding pattern, local and global RoPE, tied", "gemma3_text", head_dim=16,
        query_pre_attn_scalar=16, rope_local_base_freq=50.0, sliding_window=5,
        sliding_window_pattern=2, hidden_activation="gelu_pytorch_tanh",
        attn_logit_softcapping=None, final_logit_softcapping=None,
    ),
    "gemma3_scaled": _case(
        "layer_types, linear scaling, cap of logits, own scale of scores, untied", "gemma3_text",
        head_dim=16, query_pre_attn_scalar=24, sliding_window=5, tie_word_embeddings=False,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        final_logit_softcapping=2.0, rope_theta=None, attention_bias=True,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    ),
    "smollm3": _case(
        "layers without RoPE, tied", "smollm3", no_rope_layer_interval=2,
    ),
    "smollm3_sliding": _case(
        "layers without RoPE slide, YaRN, untied", "smollm3", no_rope_layers=[1, 0, 0],
        use_sliding_window=True, sliding_window=5, rope_scaling=YARN, tie_word_embeddings=False,
    ),
    "olmo2": _case("norms after, QK norm of whole projections, untied", "olmo2"),
    "olmo2_linear": _case(
        "biases, linear scaling, tied", "olmo2", attention_bias=True, tie_word_embeddings=True,
        rope_scaling={"type": "linear", "factor": 2.0},
    ),
    "phi3": _case("fused projections, untied", "phi3", rope_scaling=None),
    "phi3_partial": _case(
        "half of each head rotated, all layers slide, tied", "phi3", partial_rotary_factor=0.5,
        sliding_window=5, tie_word_embeddings=True,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reference:
    """A torch model in its folder, and what it computes."""

    folder: Path
    tokens_BS: np.ndarray
    logits_BSV: np.ndarray
    states: list[np.ndarray]
    """Output of each block, [B, S, D]."""
    generated: np.ndarray
    """What generate() adds to the texts, greedily."""


def make_reference(case: Case, folder: Path) -> Reference:
    """A random model of the case, saved by transformers under the case's own config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    text = json.dumps({**COMMON, **case.document})
    (folder / "config.json").write_text(text)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder), dtype=torch.float32
    )
    model.eval()
    generator = torch.Generator().manual_seed(0)
    states: list[np.ndarray] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from the initial values, at which many mistakes do not show.
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
            if name.endswith("o_proj.bias"):
                parameter.zero_()
        model.save_pretrained(folder)
        (folder / "config.json").write_text(text)
        tokens_BS = np.random.default_rng(0).integers(0, COMMON["vocab_size"], (BATCH, LENGTH))
        hooks = [
            layer.register_forward_hook(
                lambda _, __, out: states.append(
                    (out[0] if isinstance(out, tuple) else out).numpy()
                )
            )
            for layer in model.model.layers
        ]
        logits_BSV = model(torch.tensor(tokens_BS)).logits.numpy()
        for hook in hooks:
            hook.remove()
        generated = model.generate(
            torch.tensor(tokens_BS),
            attention_mask=torch.ones(tokens_BS.shape, dtype=torch.int64),
            do_sample=False,
            max_new_tokens=GENERATED,
            pad_token_id=0,
        ).numpy()[:, LENGTH:]
    return Reference(folder, tokens_BS, logits_BSV, states, generated)


@dataclasses.dataclass(frozen=True)
class Differences:
    """The largest absolute differences from a reference."""

    logits: float
    states: float
    cached: float
    greedy: int
    """Tokens that differ from generate()."""
    export: float


def measure(reference: Reference, exported: Path) -> Differences:
    """Opens the folder of a reference, computes what it computes, and exports it again."""
    config, params = load_target(reference.folder)
    model: Any = make_model(config)

    @jax.jit
    def whole(params: Any, tokens_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        every_layer = tuple(range(config.num_layers))
        output = model.apply({"params": params}, tokens_BS, capture=every_layer)
        logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
        return logits_BSV, output.features_BSE

    @jax.jit
    def step(params: Any, cache: KVCache, part_BS: jax.Array) -> tuple[KVCache, jax.Array]:
        output = model.apply({"params": params}, part_BS, cache=cache)
        logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
        return cache.write(output.keys_LBRSC, output.values_LBRSC), logits_BSV

    logits_BSV, features_BSE = whole(params, jnp.asarray(reference.tokens_BS))
    captured = np.split(np.asarray(features_BSE), config.num_layers, axis=-1)
    cache, cached_BSV = _in_steps(config, params, step, reference.tokens_BS)
    save_target(exported, config, params)
    return Differences(
        logits=_largest(logits_BSV, reference.logits_BSV),
        states=max(map(_largest, captured, reference.states)),
        cached=_largest(cached_BSV, reference.logits_BSV),
        greedy=int((_greedy(params, step, cache, cached_BSV) != reference.generated).sum()),
        export=_largest(_torch_logits(exported, reference.tokens_BS), reference.logits_BSV),
    )


def _in_steps(
    config: LanguageModelConfig, params: Any, step: Any, tokens_BS: np.ndarray
) -> tuple[KVCache, np.ndarray]:
    """The cache and the logits of texts read in steps, the rows each at its own pace.

    Of `STEP` tokens per step, row 0 keeps all and row 1 all but the last, which is as a rejected
    draft and comes again. The last tokens come one by one.
    """
    cache = KVCache.create(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        batch=BATCH,
        capacity=LENGTH + STEP + GENERATED,
    )
    logits_BSV = np.zeros((BATCH, LENGTH, config.vocab_size), np.float32)
    starts, kept = np.zeros(BATCH, int), np.array([STEP, STEP - 1])
    size = STEP
    while starts.min() < LENGTH:
        if starts.max() + STEP > LENGTH:
            size, kept = 1, (starts < LENGTH).astype(int)
        places = np.minimum(starts[:, None] + np.arange(size), LENGTH - 1)
        part_BS = np.take_along_axis(tokens_BS, places, axis=1)
        cache, part_BSV = step(params, cache, jnp.asarray(part_BS))
        for row in np.flatnonzero(starts < LENGTH):
            logits_BSV[row, places[row]] = part_BSV[row]
        cache = cache.advance(jnp.asarray(kept))
        starts += kept
    return cache, logits_BSV


def _greedy(params: Any, step: Any, cache: KVCache, logits_BSV: np.ndarray) -> np.ndarray:
    tokens = [logits_BSV[:, -1].argmax(-1)]
    while len(tokens) < GENERATED:
        cache, step_B1V = step(params, cache, jnp.asarray(tokens[-1])[:, None])
        cache = cache.advance(1)
        tokens.append(np.asarray(step_B1V)[:, -1].argmax(-1))
    return np.stack(tokens, axis=1)


def _torch_logits(folder: Path, tokens_BS: np.ndarray) -> np.ndarray:
    """What transformers computes from a folder.

    Raises:
      ValueError: it misses weights, or finds some that it does not know.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    if any(report.values()):
        raise ValueError(f"transformers does not read {folder} without complaint: {report}")
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens_BS)).logits.numpy()


def _largest(got: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(got) - expected).max())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="model types; default: all")
    chosen = parser.parse_args().families
    from transformers.utils import logging

    logging.disable_progress_bar()
    print("| family | features | logits | captured | cached | greedy | export |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES.values():
        if chosen and case.family not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            reference = make_reference(case, Path(folder))
            found = measure(reference, Path(folder) / "export")
        print(
            f"| {case.family} | {case.features} | {found.logits:.1e} | {found.states:.1e} "
            f"| {found.cached:.1e} | {found.greedy} of {BATCH * GENERATED} | {found.export:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
