"""A few minutes of training on the target that ships in the package: what quickstart.sh runs.

    python train.py --config configs/quickstart.py --workdir runs/quickstart/full
    python train.py --config configs/quickstart.py --workdir runs/quickstart/uniform \
        --loss.decay None --loss.focal 0 --loss.chain 0
    python eval.py --config configs/quickstart.py --output runs/quickstart/results.json \
        --workdir runs/quickstart/uniform runs/quickstart/full

The loss is the paper's recipe (focal 0.3, chain 40), but with a decay of 4: the paper's 10 is for
blocks of 16 slots, and DFlash uses a shorter decay for shorter blocks. Blocks have 8 slots here and
the drafter has one layer, since a few minutes of training leave hardly a right draft further out.
Hardware: 2 CPU cores.
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
        name="quickstart",
        target=TargetConfig(path="embedded"),
        drafter=DrafterConfig(
            block_size=8,
            num_features=3,
            num_layers=1,
            unroll_layers=True,
        ),
        loss=LossConfig(decay=4.0, focal=0.3, chain=40.0),
        data=DataConfig(
            sources=("embedded",),
            sequence_length=256,
            batch_size=8,
            anchors=32,
            embedded_examples=6_000,
        ),
        optimizer=OptimizerConfig(learning_rate=6e-3, warmup_fraction=0.03),
        training=TrainingConfig(steps=500, log_every=25, checkpoint_every=100),
        evaluation=EvaluationConfig(
            benchmarks=("embedded/math", "embedded/code", "embedded/chat"),
            prompts=40,
            max_new_tokens=128,
            batch_size=20,
            timing_prompts=3,
        ),
    )
