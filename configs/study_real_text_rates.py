"""The learning rate of each loss on real text: short trainings with three rates.

    export JAXSPEC_RAW_DATA=FOLDER
    source scripts/host_memory.env
    jaxspec study --config configs/study_real_text.py --jobs 2 --only answers/
    jaxspec study --config configs/study_real_text_rates.py --jobs 2

The first command has the target answer the questions. Every loss gets the same rates.
study_real_text.py then takes the one that is best for a loss (optimizer.learning_rate in its row)
where that is not the config's own. Hardware: 2 CPU cores.
"""

from jaxspec.study.declaration import (
    Settings,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)

UNIFORM: Settings = {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}
LOSSES: dict[str, Settings] = {
    "uniform": UNIFORM,
    "decay+focal": {"loss.chain": 0.0},
    "full": {},
    **{rival: {**UNIFORM, "loss.objective": rival} for rival in ("d_pace", "lk", "spec_auf")},
}
SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")
RATES = (1e-3, 3e-3, 6e-3)


def get_config() -> StudyConfig:
    """The study."""
    return StudyConfig(
        name="study_real_text_rates",
        targets=(
            StudyTarget(
                "real_text",
                config="real_text_drafter",
                settings={
                    "training.steps": 300,
                    "data.sources": tuple(
                        f"runs/study_real_text/answers/real_text/{source}" for source in SOURCES
                    ),
                },
            ),
        ),
        losses=tuple(
            StudyLoss(f"{name}_{rate:g}", {**settings, "optimizer.learning_rate": rate})
            for name, settings in LOSSES.items()
            for rate in RATES
        ),
        base="uniform_0.003",
        benchmarks=("gsm8k", "mbpp", "mt_bench"),
        decodings=(
            StudyDecoding("block16", {"evaluation.prompts": 24, "evaluation.timing_prompts": 0}),
        ),
    )
