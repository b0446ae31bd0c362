"""The masked-diffusion drafter of real_text_mdlm.py learns to draft (SpecDiff-2).

    python train.py --config configs/real_text_mdlm_draft.py --workdir runs/real_text/draft

Blocks of 16 masks follow clean prefixes, as in decoding. The prefix is causal, so that drafting can
cache it. The loss is plain cross-entropy. study_real_text_mdlm.py compares it with others: streak
distillation, the three interventions, LoRA, and the bidirectional prefix of MDLM. Hardware: 2 CPU
cores.
"""

from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    EvaluationConfig,
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
        name="real_text_mdlm_draft",
        target=TargetConfig(path="examples/real_text_target"),
        denoiser=DenoiserConfig(
            path="runs/real_text/mdlm",
            unroll_layers=True,
            context="causal",
            objective="draft",
            block_size=17,
        ),
        loss=LossConfig(decay=None, focal=0.0, chain=0.0),
        data=DataConfig(
            sources=tuple(f"{ANSWERS}/{source}" for source in SOURCES),
            sequence_length=512,
            batch_size=4,
            anchors=32,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=500, log_every=50, checkpoint_every=250),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "math500", "humaneval", "mbpp", "mt_bench", "aime24"),
            prompts=80,
            max_new_tokens=128,
            batch_size=20,
            block_size=9,
            max_prompt_tokens=1024,
            timing_prompts=2,
        ),
    )
