"""The target of real_text_target.py, trained further on answers that it has sampled itself.

    export JAXSPEC_RAW_DATA=FOLDER
    for source in gsm8k math mbpp code_instructions instructions; do
        jaxspec regenerate --target.path runs/real_text/first/export --source $source \
            --temperature 0.8 --max_new_tokens 256 --limit 1280 \
            --output runs/real_text/samples/$source
    done
    python train.py --config configs/real_text_target_own.py --workdir runs/real_text/target

Greedy answers of the first target often repeat themselves without end: on six benchmarks, half of
its answers repeat at least half of their 4-grams. It is unsure of each token, and the likeliest one
is often a repetition. Its sampled answers hardly ever repeat themselves. This run learns a thousand
of them per data set nearly by heart, so that the target is sure of what it says, as large models
are. (Training on one's own samples: "ReST", arXiv 2308.08998.) Hardware: 2 CPU cores.
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
            max_examples=1000,
            sequence_length=512,
            batch_size=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_fraction=0.04, weight_decay=0.1),
        training=TrainingConfig(task="target", steps=1500, log_every=50, checkpoint_every=100),
    )
