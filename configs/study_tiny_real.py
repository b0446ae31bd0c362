"""The ladder of losses on the 1.4M-parameter target of tiny_real_target.py, which has to be there.

    python train.py --config configs/tiny_real_target.py --workdir runs/real/target
    jaxspec study --config configs/study_tiny_real.py --output runs/real/ladder

Hardware: 2 CPU cores; 8 minutes per drafter on one of them.
"""

from jaxspec.study.declaration import StudyConfig, StudyLoss, StudyTarget


def get_config() -> StudyConfig:
    """The study."""
    return StudyConfig(
        name="study_tiny_real",
        targets=(StudyTarget("tiny_real", config="tiny_real_drafter"),),
        losses=(
            StudyLoss("uniform", {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("decay", {"loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("decay+focal", {"loss.chain": 0.0}),
            StudyLoss("full"),
        ),
    )
