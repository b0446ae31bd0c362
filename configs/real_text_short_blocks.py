"""The drafter that those of real_text_drafter.py start from: it has learned blocks of 4 slots.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    jaxspec study --config configs/study_real_text.py --jobs 2 --only answers/
    python train.py --config configs/real_text_short_blocks.py --workdir runs/real_text/short_blocks
    jaxspec export --workdir runs/real_text/short_blocks \
        --output examples/real_text_short_blocks --target_name examples/real_text_target

The first command has the target answer the questions. The last one made
examples/real_text_short_blocks, which is this drafter in bfloat16.

On a CPU, blocks of 16 slots learn slowly: nearly all the time goes into late slots, from
which nothing can be learned until the first ones are right. In the time of one block of 16, four
blocks of 4 are learned. The loss is uniform. Hardware: 2 CPU cores.
"""

from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
)

ANSWERS = "runs/study_real_text/answers/real_text"
SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="real_text_short_blocks",
        target=TargetConfig(path="examples/real_text_target"),
        drafter=DrafterConfig(block_size=4, num_features=3, num_layers=2, unroll_layers=True),
        loss=LossConfig(decay=None, focal=0.0, chain=0.0),
        data=DataConfig(
            sources=tuple(f"{ANSWERS}/{source}" for source in SOURCES),
            sequence_length=512,
            batch_size=2,
            anchors=192,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_fraction=0.03),
        training=TrainingConfig(steps=4000, log_every=100, checkpoint_every=500),
    )
