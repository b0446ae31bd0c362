"""A 5.8M-parameter target trained from scratch on GSM8K, MATH, code and instructions.

    export JAXSPEC_RAW_DATA=FOLDER
    python train.py --config configs/real_text_target.py --workdir runs/real_text/first

The tokenizer (byte-level BPE, 4,096 tokens) is trained on the same text first; it is written to
WORKDIR/export with the weights. real_text_target_ends.py trains it further. Hardware: 2 CPU cores.
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
        name="real_text_target",
        target=TargetConfig(
            path="",
            architecture=TransformerConfig(
                vocab_size=4096,
                hidden_size=256,
                num_layers=6,
                num_heads=4,
                num_kv_heads=2,
                head_dim=64,
                intermediate_size=640,
                max_position_embeddings=2048,
                unroll_layers=True,
            ),
        ),
        data=DataConfig(
            sources=SOURCES,
            tokenizer="train",
            tokenizer_vocab=4096,
            sequence_length=512,
            batch_size=4,
            loss_on="all",
            max_examples=800,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="target", steps=5600, log_every=50, checkpoint_every=200),
    )
