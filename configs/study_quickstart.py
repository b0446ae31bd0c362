"""The ladder of losses on the target that ships in the package, with three seeds.

    source scripts/host_memory.env
    jaxspec study --config configs/study_quickstart.py --jobs 2

Four rows (uniform, decay, decay + focal, full) and three seeds: 12 drafters, and an evaluation of
each on three benchmarks, 24 units. Each unit is a command of its own; a study that was stopped
continues with the same command. Hardware: 2 CPU cores; 3 to 5 minutes per drafter and its
evaluation on one of them.
"""

from jaxspec.study.declaration import StudyConfig, StudyDecoding, StudyLoss, StudyTarget


def get_config() -> StudyConfig:
    """The study."""
    return StudyConfig(
        name="study_quickstart",
        targets=(StudyTarget("embedded", config="quickstart"),),
        losses=(
            StudyLoss("uniform", {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("decay", {"loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("decay+focal", {"loss.chain": 0.0}),
            StudyLoss("full"),
        ),
        seeds=(0, 1, 2),
        decodings=(StudyDecoding("block", {"evaluation.timing_prompts": 0}),),
    )
