"""Recipes: a whole `RunConfig` from what differs between targets.

A config file calls one, and changes what it wants changed with `dataclasses.replace`.
"""

from __future__ import annotations

from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    EvaluationConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)


def paper_drafter(
    name: str,
    *,
    path: str,
    architecture: TransformerConfig,
    mask_token_id: int,
    target_layer_ids: tuple[int, ...],
) -> RunConfig:
    """A full-size DFlash drafter, trained as in arXiv 2606.11552.

    From the paper: the loss's (10, 0.3, 40), blocks of 16, 4 full-attention layers, sequence 4096,
    512 anchors, AdamW with cosine decay from 1e-3 after 1.5% of warm-up, batch 32, bfloat16. Not
    stated there and chosen here: the drafter's widths (the target's, as the paper has them for
    Llama-3-8B), weight decay 0, clipping at 1.0, float32 master weights. The data sets are public
    ones, a small stand-in for the paper's conversations (ShareGPT, not regenerated); a folder of
    `jaxspec regenerate` is better.

    Parameters are sharded over all devices, so the number of devices has to divide the 32 rows.

    Args:
      name: the name of the run.
      path: the target's folder.
      architecture: the target's shape, in bfloat16.
      mask_token_id: the token in the slots to be drafted: a row of the target's embedding that no
        text and no chat template uses.
      target_layer_ids: the target layers whose outputs the drafter reads.
    """
    return RunConfig(
        name=name,
        target=TargetConfig(path=path, architecture=architecture, dtype="bfloat16"),
        drafter=DrafterConfig(
            block_size=16,
            mask_token_id=mask_token_id,
            target_layer_ids=target_layer_ids,
            num_layers=4,
            # Widths, epsilon and rotary base of 0 are the target's.
            dtype="bfloat16",
            param_dtype="float32",
            remat=True,
            # Scores of 32 x 16 slots over 4096 positions: 8 MB per head and row (all blocks: 134).
            chunk_blocks=32,
        ),
        # 32 blocks at a time: with the 151,936 ids of Qwen3, 32 x 15 rows of float32 logits are
        # 292 MB per row of the batch (128,256 ids of Llama 3: 246 MB); all 512 blocks: 4.7 GB.
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
