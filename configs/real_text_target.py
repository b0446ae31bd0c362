"""A 5.2M-parameter target trained from scratch on GSM8K, MATH, code and instructions.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    python train.py --config configs/real_text_target.py --workdir runs/real_text/target
    jaxspec export --workdir runs/real_text/target --output examples/real_text_target

The last command made examples/real_text_target, which is this target in bfloat16.

It learns few examples, 3,500, nearly by heart (21 epochs), so that it is sure of what it says, as
large models are: one that had seen all examples 4 times repeated itself in half of its greedy
answers. The tokenizer (byte-level BPE, 4,096 tokens) is trained on the same text first. Hardware: 2
CPU cores; an hour.
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
