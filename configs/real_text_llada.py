"""A LLaDA of 5.2M parameters on real text: a diffusion language model that answers.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    jaxspec study --config configs/study_real_text.py --jobs 2 --only answers/
    python train.py --config configs/real_text_llada.py --workdir runs/real_text/llada
    L="--config configs/real_text_llada.py --target.path runs/real_text/llada/export"
    jaxspec calibrate $L --source gsm8k --output runs/real_text/llada/graph.json
    python eval.py $L --diffusion.graph runs/real_text/llada/graph.json \
        --output runs/real_text/llada.json

It starts from the weights of examples/real_text_target and learns that model's own answers, which
the study command writes. As in LLaDA's fine-tuning, only answers are masked, and rows are filled up
with end-of-text tokens, which are learned too. Hardware: 2 CPU cores.
"""

from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    DiffusionEvaluationConfig,
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
        name="real_text_llada",
        target=TargetConfig(path=TARGET),
        denoiser=DenoiserConfig(path=TARGET, unroll_layers=True, objective="llada"),
        data=DataConfig(
            sources=tuple(f"{ANSWERS}/{source}" for source in SOURCES),
            sequence_length=384,
            batch_size=6,
            packing=False,
            fill_rows=True,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=4000, log_every=100, checkpoint_every=500),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "humaneval", "mbpp", "math500"),
            prompts=20,
            max_new_tokens=128,
            batch_size=10,
            max_prompt_tokens=256,
            timing_prompts=2,
        ),
        diffusion=DiffusionEvaluationConfig(drafts=("ssd", "star"), num_drafts=(1, 3, 5, 8, 10)),
    )
