"""What each intervention is worth on real text, against the field's other losses.

    export JAXSPEC_RAW_DATA=FOLDER
    source scripts/host_memory.env
    jaxspec study --config configs/study_real_text.py --jobs 2

The target is examples/real_text_target (real_text_target.py). It first answers the questions that
the drafters learn from. The main rows have three seeds, the others one. All rows are measured
greedily with the block that they were trained with; the main rows also with smaller blocks, with a
tree and at temperature 1. Their speed is measured at the end, one at a time.

Names: gamma is loss.decay, focal and chain are the weights of these terms. "weight" rows are
normalised over all slots, not block by block. The rivals (D-PACE, LK, Spec-AUF) take the place of
cross-entropy, alone and under the chain reward. Hardware: 2 CPU cores.
"""

from jaxspec.study.declaration import (
    StudyAnswers,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)

MAIN = ("uniform", "decay+focal", "full")
SEEDS = (0, 1, 2)
UNIFORM = {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}
CHAIN = {"loss.decay": None, "loss.focal": 0.0}
RIVALS = ("d_pace", "lk", "spec_auf")
UNTIMED = {"evaluation.timing_prompts": 0}


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
            StudyLoss("uniform", UNIFORM, seeds=SEEDS),
            StudyLoss("decay", {"loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("focal", {"loss.decay": None, "loss.chain": 0.0}),
            StudyLoss("chain", CHAIN),
            StudyLoss("decay+focal", {"loss.chain": 0.0}, seeds=SEEDS),
            StudyLoss("full", seeds=SEEDS),
            *(StudyLoss(f"full_gamma{gamma:g}", {"loss.decay": gamma}) for gamma in (7.0, 20.0)),
            *(StudyLoss(f"full_focal{focal:g}", {"loss.focal": focal}) for focal in (0.5, 1.0)),
            *(
                StudyLoss(f"full_chain{chain:g}", {"loss.chain": chain})
                for chain in (5.0, 10.0, 20.0)
            ),
            *(
                StudyLoss(
                    f"full_weight_chain{chain:g}",
                    {"loss.normalize": "weight", "loss.chain": chain},
                )
                for chain in (5.0, 10.0, 20.0, 40.0)
            ),
            *(StudyLoss(rival, {**UNIFORM, "loss.objective": rival}) for rival in RIVALS),
            *(StudyLoss(f"{rival}+chain", {**CHAIN, "loss.objective": rival}) for rival in RIVALS),
        ),
        decodings=(
            StudyDecoding("block16", UNTIMED),
            StudyDecoding("block8", {"evaluation.block_size": 8, **UNTIMED}, losses=MAIN),
            StudyDecoding("block4", {"evaluation.block_size": 4, **UNTIMED}, losses=MAIN),
            StudyDecoding("tree32", {"evaluation.tree_nodes": 32, **UNTIMED}, losses=MAIN),
            StudyDecoding("temperature1", {"evaluation.temperature": 1.0, **UNTIMED}, losses=MAIN),
            StudyDecoding("timed", {"evaluation.prompts": 6}, losses=MAIN),
        ),
    )
