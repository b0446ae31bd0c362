"""Longer training on more answers: does the gain on real text stay when drafters learn for longer?

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    source scripts/host_memory.env
    jaxspec study --config configs/study_real_text_more.py --jobs 2

As study_real_text_random.py, but with 6,400 steps instead of 1,600, and with up to 8,000 questions
of each source instead of 2,000. The target (examples/real_text_target) answers them first. With
2,000 questions, 6,400 steps go through the answers six times, and the drafters learn them by
heart. Hardware: 2 CPU cores; a drafter takes about an hour on one of them.
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
        name="study_real_text_more",
        targets=(
            StudyTarget(
                "real_text",
                config="real_text_drafter",
                settings={
                    "drafter.path": "",
                    "drafter.num_features": 3,
                    "drafter.num_layers": 2,
                    "data.batch_size": 2,
                    "training.steps": 6400,
                    "optimizer.learning_rate": 6e-3,
                },
                answers=StudyAnswers(
                    ("gsm8k", "math", "mbpp", "code_instructions", "instructions"),
                    {"temperature": 0.0, "max_new_tokens": 256, "limit": 8000},
                ),
            ),
        ),
        losses=(
            StudyLoss("uniform", {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("decay+focal", {"loss.chain": 0.0}),
            StudyLoss("full"),
            StudyLoss("full_gamma4", {"loss.decay": 4.0}),
            StudyLoss(
                "d_pace",
                {
                    "loss.decay": None,
                    "loss.focal": 0.0,
                    "loss.chain": 0.0,
                    "loss.objective": "d_pace",
                },
            ),
        ),
        seeds=(0,),
        base="uniform",
        decodings=(StudyDecoding("block16", {"evaluation.timing_prompts": 0}),),
    )
