"""A masked-diffusion language model that drafts for the target of real_text_target.py (SpecDiff).

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    jaxspec study --config configs/study_real_text.py --jobs 2 --only answers/
    python train.py --config configs/real_text_mdlm.py --workdir runs/real_text/mdlm

The study command has the target answer the questions; the drafter learns from its answers. It
starts from the target's first three layers, which learn to read in both directions and to fill in
random masks, as MDLM does. From random weights, that would take too long on 2 CPU cores.
configs/real_text_mdlm_draft.py continues from it. Hardware: 2 CPU cores.
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

TARGET = "examples/real_text_target"
ANSWERS = "runs/study_real_text/answers/real_text"
SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="real_text_mdlm",
        target=TargetConfig(path=TARGET),
        denoiser=DenoiserConfig(path=TARGET, num_layers=3, unroll_layers=True, objective="elbo"),
        data=DataConfig(
            sources=tuple(f"{ANSWERS}/{source}" for source in SOURCES),
            sequence_length=512,
            batch_size=4,
            loss_on="all",
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=4000, log_every=100, checkpoint_every=500),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "aime24"),
            prompts=20,
            max_new_tokens=128,
            batch_size=20,
            block_size=9,
            max_prompt_tokens=1024,
            timing_prompts=2,
        ),
    )
