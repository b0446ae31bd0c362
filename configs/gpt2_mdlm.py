"""SpecDiff's published pair: MDLM (170M parameters) learns to draft for GPT-2.

    python train.py --config configs/gpt2_mdlm.py --workdir runs/gpt2_mdlm \
        --target.path GPT2 --denoiser.path MDLM
    python eval.py --config configs/gpt2_mdlm.py --workdir runs/gpt2_mdlm MDLM --target.path GPT2 \
        --output gpt2_mdlm.json --evaluation.block_size 17 --evaluation.denoising_passes 3

GPT2 is openai-community/gpt2 (or its larger sizes, up to gpt2-xl), MDLM is kuleshov-group/mdlm-owt,
both as downloaded. The folder MDLM can draft as it is, which is how SpecDiff uses it; training
teaches it blocks of 16 masks after a prefix. Without --denoiser.path an MDLM is trained from
scratch.

Hardware: written for a TPU v5e-8 slice. What the step needs on each device, compiled without one
(this needs libtpu):

    jaxspec plan --config configs/gpt2_mdlm.py --topology v5e:2x4

Time and result: unmeasured. This configuration has not been run. From SpecDiff (arXiv 2408.05636):
10 to 20 drafts, 3 passes. Chosen here: the texts, the rates, the interventions.
"""

from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    DiTConfig,
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
        name="gpt2_mdlm",
        target=TargetConfig(path="gpt2"),
        denoiser=DenoiserConfig(
            # The released shape: GPT-2's 50,257 tokens and the mask.
            architecture=DiTConfig(dtype="bfloat16", remat=True),
            objective="draft",
            block_size=17,
        ),
        loss=LossConfig(decay=10.0, focal=0.3, chain=40.0, chunk_blocks=1),
        data=DataConfig(
            sources=("wikitext2", "tinystories"),
            sequence_length=512,
            batch_size=64,
            anchors=2,
            loss_on="all",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_fraction=0.03),
        training=TrainingConfig(task="denoiser", steps=2000),
        evaluation=EvaluationConfig(
            benchmarks=("wikitext2", "tinystories", "spec_bench/summarization"),
            max_new_tokens=128,
            max_prompt_tokens=896,
        ),
    )
