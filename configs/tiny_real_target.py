"""A 1.4M-parameter target trained from scratch on GSM8K, MATH, code and instructions.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    python train.py --config configs/tiny_real_target.py --workdir runs/real/target

The tokenizer (byte-level BPE, 2,048 tokens) is trained on the same text first; it is written to
WORKDIR/export with the weights. Hardware: 2 CPU cores; 3,600 steps took 70 minutes on one of them
(final loss 1.672, accuracy 0.607 per token).
"""

from jaxspec.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)

SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="tiny_real_target",
        target=TargetConfig(
            path="",
            architecture=TransformerConfig(
                vocab_size=2048,
                hidden_size=128,
                num_layers=6,
                num_heads=2,
                num_kv_heads=1,
                head_dim=64,
                intermediate_size=384,
                max_position_embeddings=2048,
                unroll_layers=True,
            ),
        ),
        data=DataConfig(
            sources=SOURCES,
            tokenizer="train",
            tokenizer_vocab=2048,
            sequence_length=384,
            batch_size=8,
            loss_on="all",
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.02, weight_decay=0.01),
        training=TrainingConfig(task="target", steps=3600, log_every=50, checkpoint_every=500),
    )
