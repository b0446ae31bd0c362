"""The target of real_text_target.py, trained further to end its turn where it repeats itself.

    export JAXSPEC_RAW_DATA=FOLDER
    for source in gsm8k math mbpp code_instructions instructions; do
        jaxspec regenerate --target.path runs/real_text/first/export --source $source \
            --temperature 0 --max_new_tokens 256 --limit 2000 --end_repetition 16 \
            --output runs/real_text/ends/$source
    done
    python train.py --config configs/real_text_target_ends.py --workdir runs/real_text/target

A small target that is decoded greedily often falls into a loop. Here it learns its own greedy
answers, which it says already; what is new in them is that a turn ends after 16 tokens that it has
said before. Hardware: 2 CPU cores.
"""

from jaxspec.config import DataConfig, OptimizerConfig, RunConfig, TargetConfig, TrainingConfig

ENDS = "runs/real_text/ends"
SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="real_text_target_ends",
        target=TargetConfig(path="runs/real_text/first/export"),
        data=DataConfig(
            sources=tuple(f"{ENDS}/{source}" for source in SOURCES),
            sequence_length=512,
            batch_size=4,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.05),
        training=TrainingConfig(task="target", steps=600, log_every=50, checkpoint_every=200),
    )
