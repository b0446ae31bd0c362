"""Settings of an evaluation: what eval.py decodes and how. Import them from `jaxspec.config`.

Nothing here touches jax.

>>> EvaluationConfig().temperature
0.0
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from jaxspec.architectures import require
from jaxspec.ranges import (
    MOST_DRAFTS,
    MOST_EXAMPLES,
    MOST_SLOTS,
    MOST_TOGETHER,
    MOST_VOCABULARY,
    NotNegative,
    Positions,
    Positive,
    Seed,
    check_ranges,
    fraction,
    whole,
)

MOST_REPEATS = 1000
"""The most times that something may be timed."""
Suppress = Literal["none", "unused", "special"]
"""Tokens that a target may not emit: none, ids that have no token, or these and special ones."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What eval.py measures."""

    benchmarks: tuple[str, ...] = ("embedded/math", "embedded/code", "embedded/chat")
    """Data sets whose prompts are decoded."""
    prompts: Annotated[int, whole(1, MOST_EXAMPLES)] = 40
    """Prompts per benchmark (fewer if it has fewer)."""
    max_new_tokens: Positions = 128
    """Longest response, in tokens."""
    batch_size: Annotated[int, whole(1, MOST_TOGETHER)] = 8
    """Prompts decoded together."""
    temperature: NotNegative = 0.0
    """0: greedy decoding; above 0: sampling."""
    draft_temperature: NotNegative | None = None
    """Temperature at which drafts are sampled; None: the target's. Outputs are exact at any value.
    At 0, the likeliest tokens are drafted, and the verifier treats them as certain."""
    top_k: Annotated[int, whole(0, MOST_VOCABULARY)] = 0
    """Sample only from the k likeliest tokens, for target and draft alike; 0: from all."""
    top_p: Annotated[float, fraction(zero=False)] = 1.0
    """Sample only from the likeliest tokens that together reach this probability (nucleus); 1: from
    all."""
    min_p: Annotated[float, fraction()] = 0.0
    """Sample only from tokens that are at least this fraction as likely as the likeliest one; 0:
    from all."""
    suppress: Suppress = "none"
    """Tokens that the target may not emit: "none": it answers as it would by itself, like
    transformers' generate(). "unused": rows of the embedding that have no token. "special": these,
    and the special and padding tokens that do not end an answer."""
    strategy: Literal["given", "auto", "off"] = "given"
    """"given": the drafter is used as the settings below say. "auto": each drafter's rule, block or
    tree is chosen, or no drafting at all, by what is fastest on a few questions that are not
    measured (`jaxspec.evals.speculative.choice`); every option is compiled for that. "off": nothing
    is drafted."""
    calibration: str = ""
    """Data set whose test questions strategy "auto" is decided on; "": those questions of the
    benchmarks that are not measured."""
    calibration_prompts: Annotated[int, whole(1, MOST_EXAMPLES)] = 8
    """How many questions of each of these sets are decoded for strategy "auto"."""
    verifier: str = "auto"
    """Rejection rule (`jaxspec.verify.rules`). "auto": "greedy" at temperature 0, else "token".
    "point_mass" is for drafts that were not sampled, "tree" for trees, "recursive" for chains;
    "auto" also chooses these where needed."""
    tree_nodes: Annotated[int, whole(0, MOST_DRAFTS)] = 0
    """Draft a best-first tree of this many nodes instead of one block; 0: no tree. Prompt look-up
    drafts as many continuations as fit, each of a block."""
    chains: Annotated[int, whole(0, MOST_DRAFTS)] = 0
    """Draft this many sampled chains, all verified in one target pass, instead of one block; 0: one
    block. At temperature 0, they need a `draft_temperature`."""
    adaptive_sizes: tuple[Annotated[int, whole(1, MOST_SLOTS)], ...] = ()
    """Sizes that a controller chooses from while decoding, based on how many drafts were accepted
    and what a round costs. A size is the number of tokens that the target reads per round: a block,
    or a tree's nodes and its anchor; 1 turns drafting off. (): one fixed size."""
    block_size: Annotated[int, whole(0, MOST_SLOTS)] = 0
    """Slots per block in decoding, including its anchor; 0: the drafter's own."""
    denoising_passes: Annotated[int, whole(1, MOST_SLOTS)] = 1
    """Passes that a masked-diffusion drafter takes to fill a block."""
    denoising_order: Literal["ancestral", "first_hitting", "left_to_right"] = "ancestral"
    """Which masks each of these passes fills: random ones at random times (MDLM's reverse process),
    random ones in equal shares, or the leftmost ones."""
    draft_rule: Literal["in_order", "last_pass", "point_mass", "reveal_time"] = "in_order"
    """When several passes fill a block, which tokens the verifier gets a distribution for: those
    with nothing to their left that was filled in later ("in_order"), those of the last pass
    ("last_pass"), or none ("point_mass"). A token without one counts as certain. "reveal_time"
    gives the distribution of every token, which is exact only from left to right."""
    reference_rows: Annotated[int, whole(1, MOST_SLOTS)] = 1
    """Rows of the target's passes when it answers alone, as the reference that outputs are compared
    with. With the block size, its passes have the shape of verification, so that in bfloat16 both
    round alike; this takes longer. The speed is always compared with passes of one token."""
    max_prompt_tokens: Positions = 512
    """Longest prompt, in tokens; longer prompts are left out and counted."""
    passage_tokens: Positions = 32
    """In running text (wikitext2, tinystories), the first N tokens are the prompt, unchanged; the
    target continues from there."""
    timing_prompts: Annotated[int, whole(0, MOST_EXAMPLES)] = 6
    """Prompts per benchmark on which wall-clock speed is measured, one at a time; 0: no timing."""
    timing_repeats: Annotated[int, whole(1, MOST_REPEATS)] = 3
    """How often each timing is repeated."""
    seed: Seed = 0
    """Seed for sampling and for the bootstrap."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="evaluation.")
        chosen = ("verifier", "tree_nodes", "chains", "adaptive_sizes", "block_size")
        fixed = [name for name in chosen if getattr(self, name) not in ("auto", 0, ())]
        require(
            self.strategy != "auto" or not fixed,
            "evaluation.strategy 'auto' chooses rule, block and tree itself: leave out "
            f"{', '.join(f'evaluation.{name}' for name in fixed)}.",
        )
        require(
            not (self.tree_nodes and self.chains),
            "A round drafts either a best-first tree or sampled chains: got evaluation.tree_nodes "
            f"{self.tree_nodes} and evaluation.chains {self.chains}. Set one of them to 0.",
        )
        require(
            len(set(self.adaptive_sizes)) == len(self.adaptive_sizes),
            f"evaluation.adaptive_sizes must differ: got {self.adaptive_sizes}.",
        )
        require(
            not (self.adaptive_sizes and self.chains),
            "evaluation.adaptive_sizes are for blocks and trees: leave evaluation.chains at 0.",
        )
        require(
            not self.adaptive_sizes or self.tree_nodes > 0 or not self.block_size,
            "evaluation.adaptive_sizes are the block sizes here: leave out evaluation.block_size. "
            f"To try blocks of {self.block_size}, add {self.block_size} to adaptive_sizes.",
        )
        require(
            self.draft_rule != "reveal_time"
            or self.denoising_order == "left_to_right"
            or self.denoising_passes == 1,
            "evaluation.draft_rule 'reveal_time' would change the target's output: in order "
            f"{self.denoising_order!r} with {self.denoising_passes} passes, the distribution that "
            "a token was drawn from depends on what was to its right. Use 'in_order', 'last_pass' "
            "or 'point_mass', or evaluation.denoising_order 'left_to_right'.",
        )
        require(
            self.draft_rule != "point_mass"
            or self.verifier in ("auto", "point_mass")
            or self.temperature == 0,
            "evaluation.draft_rule 'point_mass' gives the verifier no distributions: got "
            f"evaluation.verifier {self.verifier!r}, expected 'auto' or 'point_mass'.",
        )
        require(
            self.denoising_passes == 1 or not (self.tree_nodes or self.chains),
            "Trees and chains are drawn from the distributions of one pass: got "
            f"evaluation.denoising_passes {self.denoising_passes}.",
        )
        require(
            self.block_size != 1,
            "evaluation.block_size includes the anchor and must be at least 2: got 1.",
        )
        require(len(self.benchmarks) >= 1, "evaluation.benchmarks is empty: name at least one.")


@dataclasses.dataclass(frozen=True)
class DiffusionEvaluationConfig:
    """How eval.py and calibrate decode a target that is a diffusion language model.

    The prompts, the length of a response (`max_new_tokens`), temperature, batch and seed are those
    of `EvaluationConfig`.
    """

    block_length: Annotated[int, whole(0, MOST_SLOTS)] = 0
    """Tokens per block; blocks are filled from left to right. 0: what the model was trained with
    (SDAR: 4), or else 32."""
    unmasking: str = "scheduled"
    """Which masks a step reveals: an equal share of the block ("scheduled", LLaDA), all with enough
    confidence ("threshold"), or as many as can be revealed together at a bounded risk ("factor",
    Fast-dLLM)."""
    steps: Annotated[int, whole(0, MOST_SLOTS)] = 0
    """Steps that unmasking "scheduled" takes to fill one block; 0: one per token. The `steps` of
    LLaDA's and Fast-dLLM's programs are those of the whole response: divide them by its number of
    blocks. (256 steps for 256 tokens in blocks of 32 are 32 here.)"""
    threshold: Annotated[float, fraction(zero=False)] = 0.9
    """Confidence that unmasking "threshold" requires."""
    factor: Positive = 1.0
    """Risk that unmasking "factor" accepts; near 0: one token per step."""
    end_of_text: Literal["allowed", "last", "never"] = "allowed"
    """When an answer may end: a model that was trained on padded answers may fill a long block with
    end-of-text tokens, of which it is surest. "allowed": whenever it is sure. "last": tokens that
    end an answer have confidence 0, so they are revealed after everything else in their block.
    "never": the tokenizer's end-of-text token is not revealed, though an end-of-turn token is.
    LLaDA's own evaluation calls these confidence_eos_eot_inf and logits_eos_inf."""
    caching: Literal["none", "prefix", "dual"] = "dual"
    """Which keys and values are reused while a block is filled: none ("none"), those before it
    ("prefix"), or all but its own ("dual")."""
    block_causal: bool = False
    """Whether a token sees only its own block and earlier ones. A model that was trained that way
    (context "block_causal") always does this."""
    guidance: NotNegative = 0.0
    """Strength of classifier-free guidance; 0: off."""
    drafts: tuple[Literal["ssd", "freedave", "star"], ...] = ("ssd",)
    """Draft graphs that need no calibration; each gets rows in the table. They draft the likeliest
    tokens at the likeliest positions: one after the other ("ssd"), a step's share at a time
    ("freedave"), or each on its own ("star")."""
    num_drafts: tuple[Annotated[int, whole(0, MOST_DRAFTS)], ...] = (3,)
    """Sizes of the graphs (D, drafted states); each gets a row in the table. 0: plain decoding."""
    graph: str = ""
    """File written by `jaxspec calibrate`; its first `num_drafts` nodes get rows in the table too.
    "": none."""
    kept_drafts: Annotated[int, whole(0, MOST_DRAFTS)] = 0
    """In each pass, draft only this many nodes of a calibrated graph, the most promising ones (D*);
    the whole graph then gets one row. 0: draft all of them."""
    layout: Literal["mask", "batch"] = "mask"
    """How drafted states are read: in one row with a mask ("mask"), or as rows of the batch
    ("batch"). With the dual cache and with block-causal models, both give the same output as
    decoding without drafts; otherwise only "batch" does."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="diffusion.")
        require(
            not self.block_length or self.steps <= self.block_length,
            "diffusion.steps must be 0 or a number of steps per block, from 1 to "
            f"diffusion.block_length ({self.block_length}): got {self.steps}.",
        )
        require(
            not self.steps or self.unmasking == "scheduled",
            f"diffusion.steps is only for diffusion.unmasking scheduled, not {self.unmasking}: "
            "leave it at 0.",
        )
        require(
            not self.kept_drafts or bool(self.graph),
            "diffusion.kept_drafts chooses among the nodes of a calibrated graph: give its file as "
            "diffusion.graph.",
        )
