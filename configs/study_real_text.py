"""The main losses on real text, from a drafter that has learned short blocks.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    source scripts/host_memory.env
    jaxspec study --config configs/study_real_text.py --jobs 2

The target is examples/real_text_target (real_text_target.py). It first answers the questions that
the drafters learn from. All drafters start from examples/real_text_short_blocks, whose loss was
uniform; study_real_text_random.py has more losses, from random weights. Hardware: 2 CPU cores.
"""

from jaxspec.study.declaration import (
    StudyAnswers,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)


def get_config() -> StudyConfig:
    """The study."""
    return StudyConfig(
        name="study_real_text",
        targets=(
            StudyTarget(
                "real_text",
                config="real_text_drafter",
                answers=StudyAnswers(
                    ("gsm8k", "math", "mbpp", "code_instructions", "instructions"),
                    {"temperature": 0.0, "max_new_tokens": 256, "limit": 2000},
                ),
            ),
        ),
        losses=(
            StudyLoss("uniform", {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("decay+focal", {"loss.chain": 0.0}),
            StudyLoss("full"),
        ),
        seeds=(0, 1, 2),
        decodings=(StudyDecoding("block16", {"evaluation.timing_prompts": 0}),),
    )
