"""A drafter for Qwen2.5-Coder-1.5B-Instruct, on one accelerator with 80 GB of memory.

    python train.py --config configs/qwen25_coder_1_5b.py --workdir runs/coder/full \
        --target.path /models/Qwen2.5-Coder-1.5B-Instruct --data.sources ANSWERS

ANSWERS are the model's own (`jaxspec regenerate`). study_qwen25_coder_1_5b.py has the model write
them, trains drafters with several losses and measures them. The mask token is a row of the
embedding that no token uses.
"""

from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
)


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="qwen25_coder_1_5b",
        target=TargetConfig(path="models/Qwen2.5-Coder-1.5B-Instruct", dtype="bfloat16"),
        drafter=DrafterConfig(
            block_size=16,
            mask_token_id=151_669,
            target_layer_ids=(1, 7, 13, 19, 25),
            num_layers=3,
            dtype="bfloat16",
        ),
        loss=LossConfig(decay=10.0, focal=0.3, chain=40.0, chunk_blocks=32),
        data=DataConfig(sequence_length=1024, batch_size=32, anchors=96),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.04),
        training=TrainingConfig(
            steps=400,
            log_every=10,
            checkpoint_every=200,
            keep_checkpoints=1,
            export_dtype="bfloat16",
        ),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "aime24"),
            prompts=64,
            max_new_tokens=256,
            batch_size=64,
            max_prompt_tokens=1024,
            timing_prompts=4,
            timing_repeats=2,
        ),
    )
