"""A tiny LLaDA on the embedded corpus, in minutes: trains, calibrates, decodes.

    python train.py --config configs/embedded_llada.py --workdir runs/llada
    jaxspec calibrate --config configs/embedded_llada.py --target.path runs/llada/export \
        --source embedded/math --output runs/llada/graph.json
    python eval.py --config configs/embedded_llada.py --target.path runs/llada/export \
        --diffusion.graph runs/llada/graph.json --output runs/llada/results.json

It starts from the shipped target, which learns to see both ways and to fill in masked answers.
"""

from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    DiffusionEvaluationConfig,
    EvaluationConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)


def get_config() -> RunConfig:
    """The run."""
    return RunConfig(
        name="embedded_llada",
        denoiser=DenoiserConfig(path="embedded", unroll_layers=True, objective="llada"),
        data=DataConfig(sequence_length=128, batch_size=16, packing=False, fill_rows=True),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=600, log_every=50, checkpoint_every=300),
        evaluation=EvaluationConfig(
            benchmarks=("embedded/math", "embedded/chat", "embedded/code"),
            prompts=8,
            max_new_tokens=64,
            batch_size=8,
            timing_prompts=2,
        ),
        diffusion=DiffusionEvaluationConfig(drafts=("ssd", "star"), num_drafts=(3, 8)),
    )
