"""DFlash drafter for Llama-3.2-3B-Instruct: `jaxspec.recipes.paper_drafter`, arXiv 2606.11552.

    python train.py --config configs/llama32_3b.py --workdir runs/llama32_3b \
        --target.path FOLDER --data.sources REGENERATED --training.epochs 3
    python eval.py --config configs/llama32_3b.py --workdir runs/llama32_3b \
        --target.path FOLDER --output llama32_3b.json
    jaxspec plan --config configs/llama32_3b.py --topology v5p:2x2x2

FOLDER is meta-llama/Llama-3.2-3B-Instruct as downloaded (config.json, safetensors, tokenizer.json).
REGENERATED is a folder written by `jaxspec regenerate`: prompts answered by the target itself. The
paper trains for 3 epochs. Without REGENERATED the run reads public data sets, of which 3 epochs are
far fewer steps than the default 6,000.

Hardware: written for a TPU v5p-16 slice (8 chips); any number of devices that divides the 32 rows
will do. `jaxspec plan` (it needs libtpu) says what the step needs on each device, without one.

Time and result: unmeasured. This configuration has not been run. The paper reports for this target
an average tau of 2.944 with the uniform loss and 3.754 with this one, greedy.

Chosen here, since the paper does not say: the target layers (spaced like those of the paper's main
target: i * (layers - 2) / 3) and the mask token.
"""

from __future__ import annotations

from jaxspec.config import Llama3RopeScaling, RunConfig, TransformerConfig
from jaxspec.recipes import paper_drafter

# 128256 would be the next free id, but the embedding has 128,256 rows (ids 0..128255).
RESERVED_SPECIAL_TOKEN_0 = 128_002
"""<|reserved_special_token_0|>, which no chat template and no text contains."""


def get_config() -> RunConfig:
    """The run."""
    target = TransformerConfig(
        vocab_size=128_256,
        hidden_size=3072,
        num_layers=28,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=8192,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=Llama3RopeScaling(factor=32.0),
        qk_norm=False,
        tie_embeddings=True,
        max_position_embeddings=131_072,
        dtype="bfloat16",
        param_dtype="bfloat16",
    )
    return paper_drafter(
        "llama32_3b",
        path="Llama-3.2-3B-Instruct",
        architecture=target,
        mask_token_id=RESERVED_SPECIAL_TOKEN_0,
        target_layer_ids=(0, 9, 17, 26),
    )
