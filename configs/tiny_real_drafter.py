"""Drafters for the target of tiny_real_target.py, trained on the same real text.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    python train.py --config configs/tiny_real_drafter.py --workdir runs/real/full

docs/results.md compares it with masked-diffusion drafters of the same target; real_text_drafter.py
is the newer one. Hardware: 2 CPU cores; 8 minutes on one of them.
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
        name="tiny_real_drafter",
        target=TargetConfig(path="runs/real/target/export"),
        drafter=DrafterConfig(block_size=8, num_features=3, num_layers=2, unroll_layers=True),
        loss=LossConfig(decay=4.0, focal=0.3, chain=40.0),
        data=DataConfig(
            sources=("gsm8k", "math", "mbpp", "code_instructions", "instructions"),
            sequence_length=384,
            batch_size=8,
            anchors=32,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.03),
        training=TrainingConfig(steps=1000, log_every=50, checkpoint_every=250),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "aime24"),
            prompts=40,
            max_new_tokens=128,
            batch_size=20,
            max_prompt_tokens=1024,
            timing_prompts=3,
        ),
    )
