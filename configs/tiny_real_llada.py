"""A tiny LLaDA on real text: a diffusion language model that answers, decoded by eval.py.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    python train.py --config configs/tiny_real_target.py --workdir runs/real/target    # 70 minutes
    python train.py --config configs/tiny_real_mdlm.py --workdir runs/real/mdlm        # 16 minutes
    python train.py --config configs/tiny_real_llada.py --workdir runs/real/llada      # 17 minutes
    L="--config configs/tiny_real_llada.py --target.path runs/real/llada/export"
    jaxspec calibrate $L --source gsm8k --output runs/real/llada/graph.json
    python eval.py $L --diffusion.graph runs/real/llada/graph.json --output runs/real/llada.json

Each run continues from the one before it. tiny_real_mdlm.py is the pre-training (random masks over
whole documents); this is LLaDA's fine-tuning: only answers are masked, and rows are filled up with
end-of-text tokens, which are learned too. Hardware: 2 CPU cores, of which a run uses one. The final
loss of these 1,500 steps is 1.17 nats per token of the answer, its end-of-text tokens included.
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
