"""The masked-diffusion drafter of tiny_real_mdlm.py learns to draft (SpecDiff-2).

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    python train.py --config configs/tiny_real_mdlm_draft.py --workdir runs/real/draft/uniform

Blocks of 16 masks follow clean prefixes, as in decoding. The prefix is causal, so that drafting can
cache it. The loss is plain cross-entropy; the other rows of the table take these options:

    --loss.objective streak                          streak distillation
    --loss.objective detached_streak                 its second form
    --loss.chain 40                                  cross-entropy and streak together
    --loss.decay 10                                  token positional weighting
    --loss.decay 10 --loss.focal 0.3                 and first-error focal loss
    --loss.decay 10 --loss.focal 0.3 --loss.chain 40     and chain loss: all three interventions
    --denoiser.lora_rank 16                          LoRA
    --denoiser.context bidirectional --data.anchors 1 --data.batch_size 32    the prefix of MDLM

bash scripts/mdlm_ladder.sh trains and measures them all. Results: docs/results.md.
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


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="tiny_real_mdlm_draft",
        target=TargetConfig(path="runs/real/target/export"),
        denoiser=DenoiserConfig(
            path="runs/real/mdlm",
            unroll_layers=True,
            context="causal",
            objective="draft",
            block_size=17,
        ),
        loss=LossConfig(decay=None, focal=0.0, chain=0.0),
        data=DataConfig(
            sources=("gsm8k", "math", "mbpp", "code_instructions", "instructions"),
            sequence_length=256,
            batch_size=8,
            anchors=16,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=500, log_every=50, checkpoint_every=250),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "math500", "humaneval"),
            prompts=16,
            max_new_tokens=64,
            batch_size=16,
            max_prompt_tokens=384,
            timing_prompts=2,
        ),
    )
