"""One pair of drafters, decoded with every verification rule, with chains and with draft trees.

    source scripts/host_memory.env
    jaxspec study --config configs/study_quickstart_decoding.py --jobs 2

The drafters are those of configs/quickstart.py, but trained for 1,000 steps on 8,000 examples, with
a learning rate of 4e-3. The uniform one is decoded with one block and with trees, the full one with
sampled chains too. Hardware: 2 CPU cores.
"""

from jaxspec.study.declaration import (
    Settings,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)

LONGER: Settings = {
    "training.steps": 1000,
    "data.embedded_examples": 8000,
    "optimizer.learning_rate": 4e-3,
}
SAMPLED: Settings = {"evaluation.temperature": 1.0}
BOTH: dict[str, Settings] = {
    "greedy": {},
    "greedy_tree32": {"evaluation.tree_nodes": 32},
    **{rule: {**SAMPLED, "evaluation.verifier": rule} for rule in ("token", "block", "point_mass")},
    **{f"tree{nodes}": {**SAMPLED, "evaluation.tree_nodes": nodes} for nodes in (16, 32, 64)},
}
ONLY_FULL: dict[str, Settings] = {
    "token_draft0.7": {
        **SAMPLED,
        "evaluation.verifier": "token",
        "evaluation.draft_temperature": 0.7,
    },
    **{
        f"{rule}_{chains}_chains": {
            **SAMPLED,
            "evaluation.verifier": rule,
            "evaluation.chains": chains,
        }
        for rule, chains in (
            ("recursive", 2),
            ("recursive", 4),
            ("recursive", 8),
            ("recursive_without_replacement", 4),
            ("k_seq", 4),
            ("tree", 4),
        )
    },
}


def get_config() -> StudyConfig:
    """The study."""
    untimed: Settings = {"evaluation.timing_prompts": 0}
    return StudyConfig(
        name="study_quickstart_decoding",
        targets=(StudyTarget("embedded", config="quickstart", settings=LONGER),),
        losses=(
            StudyLoss("uniform", {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}),
            StudyLoss("full"),
        ),
        decodings=(
            *(StudyDecoding(name, {**settings, **untimed}) for name, settings in BOTH.items()),
            *(
                StudyDecoding(name, {**settings, **untimed}, losses=("full",))
                for name, settings in ONLY_FULL.items()
            ),
        ),
    )
