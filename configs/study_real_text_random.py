"""What each change to the loss is worth on real text, compared with losses from other papers.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    source scripts/host_memory.env
    jaxspec study --config configs/study_real_text.py --jobs 2 --only answers/
    jaxspec study --config configs/study_real_text_random.py --jobs 2

With `--only answers/`, the target (examples/real_text_target) answers the questions that the
drafters learn from. All drafters start from random weights, as in the paper, and learn for the same
short time: 1,600 steps of 2 rows x 48 blocks of 16 slots. (In study_real_text.py, they start from a
drafter that was trained on short blocks.)

In the names, gamma is loss.decay; focal and chain are loss.focal and loss.chain. "weight" rows are
normalised over all slots, not block by block. The rivals (D-PACE, LK and Spec-AUF, in
jaxspec/losses/objectives.py) take the place of cross-entropy, alone and under the chain reward.
"rate0.003" rows repeat the main losses with half the learning rate, to show whether the gain
depends on it. The main losses (uniform, decay+focal, full), D-PACE, alone and under the chain
reward, and the two shortest decays have three seeds. Smaller blocks, a tree, temperature 1 and
speed are declared for one seed of each main loss. docs/results.md says what has been measured.
Hardware: 2 CPU cores.
"""

from jaxspec.study.declaration import (
    Settings,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)

SOURCES = ("gsm8k", "math", "mbpp", "code_instructions", "instructions")
RATE = 6e-3
LOWER_RATE = 3e-3
UNIFORM: Settings = {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}
CHAIN: Settings = {"loss.decay": None, "loss.focal": 0.0}
MAIN: dict[str, Settings] = {"uniform": UNIFORM, "decay+focal": {"loss.chain": 0.0}, "full": {}}
SEEDS = (0, 1, 2)
RIVALS = ("d_pace", "lk", "spec_auf")
OTHERS: dict[str, Settings] = {
    "decay": {"loss.focal": 0.0, "loss.chain": 0.0},
    "focal": {"loss.decay": None, "loss.chain": 0.0},
    "chain": CHAIN,
    **{rival: {**UNIFORM, "loss.objective": rival} for rival in RIVALS},
    **{f"{rival}+chain": {**CHAIN, "loss.objective": rival} for rival in RIVALS},
    **{f"full_gamma{gamma:g}": {"loss.decay": gamma} for gamma in (1.0, 2.0, 4.0, 7.0, 20.0)},
    **{f"full_focal{focal:g}": {"loss.focal": focal} for focal in (0.5, 1.0)},
    **{f"full_chain{chain:g}": {"loss.chain": chain} for chain in (5.0, 10.0, 20.0)},
    **{
        f"full_weight_chain{chain:g}": {"loss.normalize": "weight", "loss.chain": chain}
        for chain in (5.0, 10.0, 20.0, 40.0)
    },
}
REPEATED = ("d_pace", "d_pace+chain", "full_gamma1", "full_gamma2")
UNTIMED: Settings = {"evaluation.timing_prompts": 0}


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
        losses=(
            *(
                StudyLoss(name, {**settings, "optimizer.learning_rate": RATE}, seeds=SEEDS)
                for name, settings in MAIN.items()
            ),
            *(
                StudyLoss(
                    f"{name}_rate{LOWER_RATE:g}",
                    {**settings, "optimizer.learning_rate": LOWER_RATE},
                )
                for name, settings in MAIN.items()
            ),
            *(
                StudyLoss(
                    name,
                    {**settings, "optimizer.learning_rate": RATE},
                    seeds=SEEDS if name in REPEATED else (0,),
                )
                for name, settings in OTHERS.items()
            ),
        ),
        base="uniform",
        decodings=(
            StudyDecoding("block16", UNTIMED),
            *(
                StudyDecoding(name, {**settings, **UNTIMED}, losses=tuple(MAIN), seeds=(0,))
                for name, settings in (
                    ("block8", {"evaluation.block_size": 8}),
                    ("block4", {"evaluation.block_size": 4}),
                    ("tree32", {"evaluation.tree_nodes": 32}),
                    ("temperature1", {"evaluation.temperature": 1.0}),
                )
            ),
            StudyDecoding("timed", {"evaluation.prompts": 6}, losses=tuple(MAIN), seeds=(0,)),
        ),
    )
