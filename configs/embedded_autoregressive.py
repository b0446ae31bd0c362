"""A one-layer autoregressive drafter for the shipped target: ordinary speculative decoding.

    python train.py --config configs/embedded_autoregressive.py --workdir runs/autoregressive
    python eval.py --config configs/quickstart.py --output runs/drafters.json \
        --workdir runs/autoregressive runs/quickstart/full \
        --drafters dflash,autoregressive,ngram,none

It is a language model of its own, which shares the target's tokenizer and nothing else. Hardware:
2 CPU cores; 1,500 steps took 4 minutes on one of them (final loss 0.660; the target's is 0.400).
With 4 drafted tokens per round, 3.3 are emitted: docs/results.md.
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
    hidden_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    intermediate_size=192,
    max_position_embeddings=1024,
    unroll_layers=True,
)


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="embedded_autoregressive",
        target=TargetConfig(path="", architecture=ARCHITECTURE),
        data=DataConfig(
            sources=("embedded",),
            tokenizer="embedded",
            sequence_length=256,
            batch_size=16,
            loss_on="all",
            embedded_examples=20_000,
        ),
        optimizer=OptimizerConfig(learning_rate=6e-3, warmup_fraction=0.02, weight_decay=0.01),
        training=TrainingConfig(task="target", steps=1500, log_every=20, checkpoint_every=500),
    )
