"""A tiny LLaDA on real text: a diffusion language model that answers, to be decoded by eval.py.

    export JAXSPEC_RAW_DATA=FOLDER
    python train.py --config configs/tiny_real_llada.py --workdir runs/real/llada
    L="--config configs/tiny_real_llada.py --target.path runs/real/llada/export"
    jaxspec calibrate $L --output runs/real/llada/graph.json
    python eval.py $L --diffusion.graph runs/real/llada/graph.json --output runs/real/llada.json

Pre-training is that of tiny_real_mdlm.py (random masks over whole documents), which this goes on
from; here is LLaDA's fine-tuning: only answers are masked, and rows are filled with end-of-text
tokens that are learned as well. Hardware: 2 CPU cores; 1,500 steps took 17 minutes on one of them
(final loss 1.17 nats a token of the answer, its end-of-text tokens included).
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

SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="tiny_real_llada",
        target=TargetConfig(path="runs/real/target/export"),
        denoiser=DenoiserConfig(
            path="runs/real/mdlm/export", unroll_layers=True, objective="llada"
        ),
        data=DataConfig(
            sources=SOURCES, sequence_length=384, batch_size=12, packing=False, fill_rows=True
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=1500, log_every=50, checkpoint_every=500),
        evaluation=EvaluationConfig(
            benchmarks=("gsm8k", "humaneval", "mbpp", "math500"),
            prompts=8,
            max_new_tokens=128,
            batch_size=8,
            max_prompt_tokens=256,
            timing_prompts=2,
        ),
        diffusion=DiffusionEvaluationConfig(drafts=("ssd", "star"), num_drafts=(1, 3, 5, 8, 10)),
    )
