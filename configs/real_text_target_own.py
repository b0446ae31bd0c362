"""The target of real_text_target.py, trained further on answers that it has sampled itself.

    export JAXSPEC_RAW_DATA=FOLDER
    for source in gsm8k math mbpp code_instructions instructions; do
        jaxspec regenerate --target.path runs/real_text/first/export --source $source \
            --temperature 0.8 --max_new_tokens 256 --limit 2560 \
            --output runs/real_text/samples/$source
    done
    python train.py --config configs/real_text_target_own.py --workdir runs/real_text/target

Greedy answers of the first target repeat themselves without end. Its sampled answers mostly come to
an end, and those that do not are left out. So it learns to leave a repetition, and becomes surer of
what it says (rejection sampling, as in "ReST", arXiv 2308.08998). Hardware: 2 CPU cores.
"""

from jaxspec.config import DataConfig, OptimizerConfig, RunConfig, TargetConfig, TrainingConfig

SAMPLES = "runs/real_text/samples"
SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="real_text_target_own",
        target=TargetConfig(path="runs/real_text/first/export"),
        data=DataConfig(
            sources=tuple(f"{SAMPLES}/{source}" for source in SOURCES),
            sequence_length=512,
            batch_size=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.04, weight_decay=0.1),
        training=TrainingConfig(task="target", steps=600, log_every=50, checkpoint_every=100),
    )
