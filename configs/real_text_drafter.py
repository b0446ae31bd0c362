"""Drafters for the target of real_text_target.py, trained on its own answers.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    for source in gsm8k math mbpp code_instructions instructions; do
        jaxspec regenerate --config configs/real_text_drafter.py --source $source \
            --temperature 0 --max_new_tokens 256 --limit 2000 \
            --output runs/real_text/answers/$source
    done
    python train.py --config configs/real_text_drafter.py --workdir runs/real_text/full
    python train.py --config configs/real_text_drafter.py --workdir runs/real_text/uniform \
        --loss.decay None --loss.focal 0 --loss.chain 0
    python eval.py --config configs/real_text_drafter.py --output runs/real_text/results.json \
        --workdir runs/real_text/uniform runs/real_text/full

Blocks have 16 slots, as in the paper, and the loss is the paper's recipe. All drafters start from
the same one, which has learned blocks of 4 slots with the uniform loss (real_text_short_blocks.py):
after 400 steps from random weights, the first slot was right in 23% of all rounds, and such
drafters say little about a loss. Hardware: 2 CPU cores.
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

ANSWERS = "runs/real_text/answers"
SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="real_text_drafter",
        target=TargetConfig(path="examples/real_text_target"),
        drafter=DrafterConfig(
            path="examples/real_text_short_blocks", block_size=16, unroll_layers=True
        ),
        loss=LossConfig(decay=10.0, focal=0.3, chain=40.0),
        data=DataConfig(
            sources=tuple(f"{ANSWERS}/{source}" for source in SOURCES),
            sequence_length=512,
            batch_size=4,
            anchors=48,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.04),
        training=TrainingConfig(steps=600, log_every=50, checkpoint_every=200),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "aime24"),
            prompts=80,
            max_new_tokens=192,
            batch_size=20,
            max_prompt_tokens=1024,
            timing_prompts=6,
        ),
    )
