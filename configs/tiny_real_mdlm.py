"""A masked-diffusion language model that drafts for the target of tiny_real_target.py (SpecDiff).

    export JAXSPEC_RAW_DATA=FOLDER
    python train.py --config configs/tiny_real_mdlm.py --workdir runs/real/mdlm

It learns tokens under random masks, as MDLM does, on the text that the target was trained on.
configs/tiny_real_mdlm_suffix.py goes on from it.
"""

from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    DiTConfig,
    EvaluationConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
)

SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")
ARCHITECTURE = DiTConfig(
    vocab_size=2048,
    hidden_size=128,
    num_layers=3,
    num_heads=2,
    conditioning_size=32,
    max_position_embeddings=2048,
    unroll_layers=True,
)


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="tiny_real_mdlm",
        target=TargetConfig(path="runs/real/target/export"),
        denoiser=DenoiserConfig(architecture=ARCHITECTURE, objective="elbo"),
        data=DataConfig(sources=SOURCES, sequence_length=256, batch_size=16, loss_on="all"),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=3000, log_every=50, checkpoint_every=500),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "math500", "humaneval"),
            prompts=16,
            max_new_tokens=64,
            batch_size=16,
            max_prompt_tokens=384,
            timing_prompts=3,
        ),
    )
