"""A one-layer autoregressive drafter for the target of tiny_real_target.py, on the same real text.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    python train.py --config configs/tiny_real_autoregressive.py --workdir runs/real/autoregressive

SpecDiff's drafters are compared with it: it is ordinary speculative decoding. Hardware: 2 CPU
cores; 3,000 steps took 10 minutes on part of one (final loss 2.896, accuracy 0.385 per token).
"""

from jaxspec.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="tiny_real_autoregressive",
        target=TargetConfig(
            path="",
            architecture=TransformerConfig(
                vocab_size=2048,
                hidden_size=64,
                num_layers=1,
                num_heads=2,
                num_kv_heads=1,
                head_dim=32,
                intermediate_size=192,
                max_position_embeddings=2048,
                unroll_layers=True,
            ),
        ),
        data=DataConfig(
            sources=("gsm8k", "math", "mbpp", "code_instructions", "instructions"),
            tokenizer="runs/real/target/export",
            sequence_length=384,
            batch_size=8,
            loss_on="all",
        ),
        optimizer=OptimizerConfig(learning_rate=6e-3, warmup_fraction=0.02, weight_decay=0.01),
        training=TrainingConfig(task="target", steps=3000, log_every=50, checkpoint_every=500),
    )
