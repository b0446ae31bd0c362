"""The 1M-parameter target that ships in the package, trained on the embedded corpus.

    python train.py --config configs/embedded_target.py --workdir runs/embedded_target
    cp runs/embedded_target/export/* jaxspec/data/embedded/target/

The weights are exported in bfloat16, which halves the files, so what ships is what is measured.
Hardware: 2 CPU cores; 1,200 steps took 36 minutes on one busy core (final loss 0.400).
"""

from jaxspec.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)

ARCHITECTURE = TransformerConfig(
    vocab_size=1024,
    hidden_size=128,
    num_layers=5,
    num_heads=2,
    num_kv_heads=1,
    head_dim=64,
    intermediate_size=320,
    max_position_embeddings=1024,
    unroll_layers=True,
)


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="embedded_target",
        target=TargetConfig(path="", architecture=ARCHITECTURE),
        data=DataConfig(
            sources=("embedded",),
            tokenizer="embedded",
            sequence_length=256,
            batch_size=16,
            loss_on="all",
            embedded_examples=20_000,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_fraction=0.02, weight_decay=0.01),
        training=TrainingConfig(
            task="target",
            steps=1200,
            log_every=20,
            checkpoint_every=200,
            export_dtype="bfloat16",
        ),
    )
