"""DFlash drafter for Llama-3-8B-Instruct: `jaxspec.recipes.paper_drafter`, arXiv 2606.11552.

    python train.py --config configs/llama3_8b.py --workdir runs/llama3_8b \
        --target.path FOLDER --data.sources REGENERATED --training.epochs 3
    python eval.py --config configs/llama3_8b.py --workdir runs/llama3_8b \
        --target.path FOLDER --output llama3_8b.json
    jaxspec plan --config configs/llama3_8b.py --topology v5p:2x2x2

FOLDER is meta-llama/Meta-Llama-3-8B-Instruct as downloaded (config.json, safetensors,
tokenizer.json). REGENERATED is a folder written by `jaxspec regenerate`: prompts answered by the
target itself. The paper trains for 3 epochs. Without REGENERATED the run reads public data sets, of
which 3 epochs are far fewer steps than the default 6,000.

Hardware: written for a TPU v5p-16 slice (8 chips); any number of devices that divides the 32 rows
will do. `jaxspec plan` (it needs libtpu) says what the step needs on each device, without one.

Time and result: unmeasured. This configuration has not been run. The paper reports for this target
an average tau of 2.376 with the uniform loss and 3.420 with this one, greedy.

Target layers 0, 10, 20 and 30 and the drafter's widths (4096, 32:8 heads of 128, 14336) are the
paper's. Chosen here, since the paper does not say: the mask token.
"""

from __future__ import annotations

import dataclasses

from jaxspec.config import RunConfig, TransformerConfig
from jaxspec.recipes import paper_drafter

# 128256 would be the next free id, but the embedding has 128,256 rows (ids 0..128255).
RESERVED_SPECIAL_TOKEN_0 = 128_002
"""<|reserved_special_token_0|>, which no chat template and no text contains."""


def get_config() -> RunConfig:
    """The run."""
    target = TransformerConfig(
        vocab_size=128_256,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14_336,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        qk_norm=False,
        tie_embeddings=False,
        max_position_embeddings=8192,
        dtype="bfloat16",
        param_dtype="bfloat16",
    )
    config = paper_drafter(
        "llama3_8b",
        path="Meta-Llama-3-8B-Instruct",
        architecture=target,
        mask_token_id=RESERVED_SPECIAL_TOKEN_0,
        target_layer_ids=(0, 10, 20, 30),
    )
    widths = dataclasses.replace(
        config.drafter, num_heads=32, num_kv_heads=8, head_dim=128, intermediate_size=14_336
    )
    return dataclasses.replace(config, drafter=widths)
