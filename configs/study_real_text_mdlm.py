"""What each loss is worth for masked-diffusion drafters (SpecDiff, SpecDiff-2) on real text.

    export JAXSPEC_RAW_DATA=FOLDER    # with the original files; without it they are downloaded
    source scripts/host_memory.env
    jaxspec study --config configs/study_real_text.py --jobs 2 --only answers/
    python train.py --config configs/real_text_mdlm.py --workdir runs/real_text/mdlm
    jaxspec study --config configs/study_real_text_mdlm.py --jobs 2

All rows continue from the drafter that real_text_mdlm.py trains. It has learned to fill in random
masks, but not yet to draft. "streak" and "detached_streak" are the objectives of SpecDiff-2,
"cross_entropy+streak" adds the streak to cross-entropy, and "bidirectional" keeps the context of
MDLM, which no cache can serve. The main rows have three seeds. "chains4" samples four chains of
drafts per round and judges them by recursive rejection, "self_selection4" by SpecDiff-2's own rule.
Hardware: 2 CPU cores.
"""

from jaxspec.study.declaration import StudyConfig, StudyDecoding, StudyLoss, StudyTarget

MAIN = ("uniform", "full")
SEEDS = (0, 1, 2)
UNTIMED = {"evaluation.timing_prompts": 0}
CHAINS = {"evaluation.temperature": 1.0, "evaluation.chains": 4, **UNTIMED}


def get_config() -> StudyConfig:
    """The study."""
    return StudyConfig(
        name="study_real_text_mdlm",
        targets=(StudyTarget("real_text", config="real_text_mdlm_draft"),),
        losses=(
            StudyLoss("uniform", seeds=SEEDS),
            StudyLoss("decay", {"loss.decay": 10.0}),
            StudyLoss("decay+focal", {"loss.decay": 10.0, "loss.focal": 0.3}),
            StudyLoss(
                "full", {"loss.decay": 10.0, "loss.focal": 0.3, "loss.chain": 40.0}, seeds=SEEDS
            ),
            StudyLoss("streak", {"loss.objective": "streak"}),
            StudyLoss("detached_streak", {"loss.objective": "detached_streak"}, seeds=SEEDS),
            StudyLoss("cross_entropy+streak", {"loss.chain": 40.0}),
            StudyLoss("lora", {"denoiser.lora_rank": 16}),
            StudyLoss(
                "bidirectional",
                {"denoiser.context": "bidirectional", "data.anchors": 1, "data.batch_size": 24},
            ),
        ),
        decodings=(
            StudyDecoding("greedy", UNTIMED),
            StudyDecoding("temperature1", {"evaluation.temperature": 1.0, **UNTIMED}, losses=MAIN),
            StudyDecoding("two_passes", {"evaluation.denoising_passes": 2, **UNTIMED}, losses=MAIN),
            StudyDecoding("chains4", CHAINS, losses=MAIN),
            StudyDecoding(
                "self_selection4", {**CHAINS, "evaluation.verifier": "self_selection"}, losses=MAIN
            ),
        ),
    )
