"""A masked-diffusion language model that drafts for the target of tiny_real_target.py (SpecDiff).

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    python train.py --config configs/tiny_real_mdlm.py --workdir runs/real/mdlm

It starts from the target's first three layers, which learn to see both ways and to fill in random
masks, as MDLM does, on the text that the target was trained on: training an MDLM from scratch
takes too long on such a machine (docs/results.md). configs/tiny_real_mdlm_draft.py continues from
it. Hardware: 2 CPU cores; 1,500 steps took 16 minutes on one of them (final bound 3.36 nats per
token).
"""

from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    EvaluationConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
)

SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")
EVALUATION = EvaluationConfig(
    benchmarks=("gsm8k", "math500", "humaneval"),
    prompts=16,
    max_new_tokens=64,
    batch_size=16,
    max_prompt_tokens=384,
    timing_prompts=3,
)


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="tiny_real_mdlm",
        target=TargetConfig(path="runs/real/target/export"),
        denoiser=DenoiserConfig(
            path="runs/real/target/export", num_layers=3, unroll_layers=True, objective="elbo"
        ),
        data=DataConfig(sources=SOURCES, sequence_length=256, batch_size=16, loss_on="all"),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=1500, log_every=50, checkpoint_every=500),
        evaluation=EVALUATION,
    )
