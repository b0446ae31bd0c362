"""The pair of the paper on real text, from random weights: uniform, decay + focal, full.

    export JAXSPEC_RAW_DATA=FOLDER
    source scripts/host_memory.env
    jaxspec study --config configs/study_real_text.py --jobs 2 --only answers/
    jaxspec study --config configs/study_real_text_random.py --jobs 2

The first command has the target answer the questions. In study_real_text.py all drafters start from
one that has learned short blocks; here they start from nothing, as in the paper, and all learn for
the same time (1,600 steps of 2 rows x 48 blocks of 16 slots). Each loss is trained with two
learning rates, seed 0; the better one has two seeds more. Hardware: 2 CPU cores.
"""

from jaxspec.study.declaration import (
    Settings,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)

SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")
LOSSES: dict[str, Settings] = {
    "uniform": {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0},
    "decay+focal": {"loss.chain": 0.0},
    "full": {},
}
SEEDS = (0, 1, 2)
RATES = (3e-3, 6e-3)
BEST = {"uniform": 6e-3, "decay+focal": 6e-3, "full": 6e-3}


def get_config() -> StudyConfig:
    """The study."""
    return StudyConfig(
        name="study_real_text_random",
        targets=(
            StudyTarget(
                "real_text",
                config="real_text_drafter",
                settings={
                    "drafter.path": "",
                    "drafter.num_features": 3,
                    "drafter.num_layers": 2,
                    "data.batch_size": 2,
                    "training.steps": 1600,
                    "data.sources": tuple(
                        f"runs/study_real_text/answers/real_text/{source}" for source in SOURCES
                    ),
                },
            ),
        ),
        losses=tuple(
            StudyLoss(
                name if rate == BEST[name] else f"{name}_rate{rate:g}",
                {**settings, "optimizer.learning_rate": rate},
                seeds=SEEDS if rate == BEST[name] else (0,),
            )
            for name, settings in LOSSES.items()
            for rate in RATES
        ),
        base="uniform",
        decodings=(StudyDecoding("block16", {"evaluation.timing_prompts": 0}),),
    )
