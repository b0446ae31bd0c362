"""What the changes to the loss are worth for a released model, on one accelerator with 80 GB.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    jaxspec study --config configs/study_qwen25_coder_1_5b.py --target.path MODEL \
        --only uniform-seed0 full-seed0
    jaxspec study --config configs/study_qwen25_coder_1_5b.py --target.path MODEL

MODEL is the folder of Qwen2.5-Coder-1.5B-Instruct as downloaded. The model first answers about
8,600 training questions. The first study command trains and measures one pair of drafters, the
second one all the others. In bfloat16, checking several tokens in one pass gives other rounding
errors than decoding them one by one. Some outputs may therefore differ from the model's own; the
tables count them. This study has not been run.
"""

from jaxspec.study.declaration import (
    StudyAnswers,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)

UNIFORM = {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}
UNTIMED = {"evaluation.timing_prompts": 0}


def get_config() -> StudyConfig:
    """The study."""
    return StudyConfig(
        name="study_qwen25_coder_1_5b",
        targets=(
            StudyTarget(
                "coder",
                config="qwen25_coder_1_5b",
                answers=StudyAnswers(
                    ("gsm8k", "math", "mbpp", "code_instructions", "instructions"),
                    {
                        "temperature": 0.0,
                        "max_new_tokens": 384,
                        "limit": 2400,
                        "batch_size": 256,
                        "shard_prompts": 2400,
                    },
                ),
            ),
        ),
        losses=(
            StudyLoss("uniform", UNIFORM),
            StudyLoss("decay", {"loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("decay+focal", {"loss.chain": 0.0}),
            StudyLoss("full"),
            StudyLoss("d_pace", {**UNIFORM, "loss.objective": "d_pace"}),
        ),
        seeds=(0, 1),
        decodings=(
            StudyDecoding("block16", UNTIMED),
            StudyDecoding(
                "tree32", {"evaluation.tree_nodes": 32, **UNTIMED}, losses=("uniform", "full")
            ),
            StudyDecoding(
                "timed",
                {"evaluation.benchmarks": ("humaneval", "gsm8k"), "evaluation.prompts": 8},
                losses=("uniform", "full"),
            ),
        ),
    )
