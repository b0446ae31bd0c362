"""DFlash drafter for Llama-3.2-3B-Instruct, with the recipe of arXiv 2606.11552.

    python train.py --config configs/llama32_3b.py --workdir runs/llama32_3b \
        --target.path FOLDER --data.sources REGENERATED --training.steps STEPS
    python eval.py --config configs/llama32_3b.py --workdir runs/llama32_3b \
        --target.path FOLDER --output llama32_3b.json

FOLDER is meta-llama/Llama-3.2-3B-Instruct as downloaded (config.json, safetensors, tokenizer.json).
REGENERATED is a folder written by `jaxspec regenerate`: prompts answered by the target itself.
Without that option the run reads the public sets named below, a small stand-in for the paper's
conversations (ShareGPT, not regenerated): 3 epochs of them are far fewer steps than the default
6,000. STEPS for 3 epochs is 3 * packed rows / 32.

Hardware: written for a TPU v5p-16 slice (8 chips), parameters sharded over all of them; any number
of devices that divides the 32 rows will do. What the step takes of each device, compiled without
one (it needs libtpu):

    jaxspec plan --config configs/llama32_3b.py --topology v5p:2x2x2

Time and result: unmeasured. This configuration has not been run; the paper reports for this target
an average tau of 2.944 with the uniform loss and 3.754 with this one, greedy.

From the paper: the loss's (10, 0.3, 40), blocks of 16, 4 full-attention layers, sequence 4096, 512
anchors, AdamW with cosine decay from 1e-3 after 1.5% of warm-up, batch 32, bfloat16. Not stated
there and chosen here: target layers (spaced like those of the paper's main target: i * (layers - 2)
/ 3), the drafter's widths (the target's), the mask token, weight decay 0, clipping at 1.0, float32
master weights.
"""

from __future__ import annotations

from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    EvaluationConfig,
    Llama3RopeScaling,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)

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
    return RunConfig(
        name="llama32_3b",
        target=TargetConfig(path="Llama-3.2-3B-Instruct", architecture=target, dtype="bfloat16"),
        drafter=DrafterConfig(
            block_size=16,
            mask_token_id=RESERVED_SPECIAL_TOKEN_0,
            target_layer_ids=(0, 9, 17, 26),
            num_layers=4,
            # Widths, epsilon and rotary base of 0 are the target's.
            dtype="bfloat16",
            param_dtype="float32",
            remat=True,
            # Scores of 32 x 16 slots over 4096 positions: 8 MB a head and row (all blocks: 134).
            chunk_blocks=32,
        ),
        # 32 blocks at a time: 32 x 15 x 128256 float32 logits are 246 MB a row; 512: 3.9 GB.
        loss=LossConfig(decay=10.0, focal=0.3, chain=40.0, chunk_blocks=32),
        data=DataConfig(
            sources=("gsm8k", "math", "instructions", "code_instructions"),
            sequence_length=4096,
            batch_size=32,
            anchors=512,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.015),
        mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
        training=TrainingConfig(
            steps=6_000,
            log_every=10,
            checkpoint_every=500,
            # bfloat16 rounds a logit of 32 by up to 0.06, and the largest difference counts.
            capture_tolerance=0.25,
        ),
        evaluation=EvaluationConfig(
            benchmarks=(
                "mt_bench",
                "gsm8k",
                "humaneval",
                "aime24",
                "aime25",
                "mbpp",
                "livecodebench",
            ),
            prompts=128,
            max_new_tokens=2048,
            max_prompt_tokens=2048,
        ),
    )
