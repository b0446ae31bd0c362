# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Draft graphs: how calibration picks nodes
#
# A diffusion language model fills a block of masks step by step, and every step needs a pass.
# Spiffy (arXiv 2509.18085) saves passes: a pass over the present state also reads a few *drafted*
# states, in which the next tokens are already filled in. If a step leads to a drafted state, the
# distribution there is known, and no further pass is needed. Which states should be drafted? Spiffy
# decides once, by counting what the model's own steps did. This notebook does it in full on a model
# that is small enough to be exact.

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

from jaxspec.decoding.diffusion.calibration import StepRanks, count_formulas, select_graph
from jaxspec.decoding.diffusion.draft_graph import DraftGraph, chain, star
from jaxspec.evals.plots import plot_draft_graph

plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})
V, P, MASK = 8, 12, -1

# %% [markdown]
# ## 1. A masked model without a network
#
# The language is a Markov chain of `V = 8` tokens: what follows depends on the token before. A
# block has `P = 12` positions. For any set of revealed tokens, the distribution at each mask can be
# computed by the forward-backward algorithm. So this "model" is what a perfectly trained LLaDA of
# that language would be, and a call of `marginals` stands for one forward pass.

# %%
rng = np.random.default_rng(0)
NEXT_VV = rng.dirichlet(np.full(V, 0.25), size=V)


def marginals(anchor, block_P):
    """The distributions [P, V], given the revealed tokens and the one before the block."""
    seen_PV = np.ones((P, V))
    for place in np.flatnonzero(block_P != MASK):
        seen_PV[place] = np.arange(V) == block_P[place]
    forward_PV, backward_PV = np.empty((P, V)), np.ones((P, V))
    row_V = NEXT_VV[anchor]
    for place in range(P):
        forward_PV[place] = row_V * seen_PV[place] / (row_V @ seen_PV[place])
        row_V = forward_PV[place] @ NEXT_VV
    for place in range(P - 1, 0, -1):
        row_V = NEXT_VV @ (seen_PV[place] * backward_PV[place])
        backward_PV[place - 1] = row_V / row_V.sum()
    probs_PV = forward_PV * backward_PV
    probs_PV /= probs_PV.sum(axis=1, keepdims=True)
    # Unrounded, the order of masks that are all but certain would depend on the processor.
    return probs_PV.round(9)


def reveal(probs_PV, block_P, uniform_P):
    """One step: draw a candidate for each mask, reveal the one of largest probability."""
    candidates_P = (uniform_P[:, None] >= probs_PV.cumsum(axis=1)[:, :-1]).sum(axis=1)
    confidence_P = np.where(block_P == MASK, probs_PV[np.arange(P), candidates_P], -1.0)
    place = int(confidence_P.argmax())
    after_P = block_P.copy()
    after_P[place] = candidates_P[place]
    return after_P


def decode(anchor, uniforms_OP):
    """The base decoder: P steps and P passes. Returns each step's distribution and state."""
    block_P, trace = np.full(P, MASK), []
    for uniform_P in uniforms_OP:
        probs_PV = marginals(anchor, block_P)
        block_P = reveal(probs_PV, block_P, uniform_P)
        trace.append((probs_PV, block_P))
    return trace


def task(seed):
    """A token before the block, and the random numbers of all steps."""
    generator = np.random.default_rng([7, seed])
    return int(generator.integers(V)), generator.random((P, P))


trace = decode(*task(0))
figure, axes = plt.subplots(1, 4, figsize=(12, 2.6), sharey=True, layout="constrained")
for axis, step in zip(axes, (0, 3, 6, 9), strict=True):
    axis.imshow(trace[step][0].T, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axis.set(xlabel="position", title=f"step {step}: {step} tokens revealed")
    axis.grid(visible=False)
axes[0].set_ylabel("token")

# %% [markdown]
# As tokens are revealed, the neighbours become surer. The order is not from left to right: the
# surest mask comes first.

# %% [markdown]
# ## 2. Formulas: states without tokens
#
# What to draft is fixed before any text is known, so it cannot name tokens. It names *ranks*. The
# pair `(i, j)` stands for the mask of rank `i` (by its largest probability) and the token of rank
# `j` there, both from 0, both under the distribution of the step that led to the present state. A
# *formula* is a set of such pairs. `(0,0)` says: the surest mask gets its likeliest token. `(0,0)
# (1,0)`: the two surest masks do.
#
# Calibration replays finished blocks. After each step it asks what the next steps revealed, and
# writes that down in ranks.


# %%
def ranks_of(trace):
    """Of each step [P, P]: the ranks of the masks left, and of the tokens that they got later."""
    final_P = trace[-1][1]
    revealed_P = np.zeros(P, int)
    for step, (_, block_P) in enumerate(trace):
        revealed_P[(block_P != MASK) & (revealed_P == 0)] = step + 1
    revealed_P -= 1
    positions_OP, tokens_OP = np.zeros((P, P), int), np.zeros((P, P), int)
    for step, (probs_PV, block_P) in enumerate(trace):
        masks = np.flatnonzero(block_P == MASK)
        surest_first = masks[np.argsort(-probs_PV[masks].max(axis=1), kind="stable")]
        positions_OP[step, surest_first] = np.arange(len(masks))
        order_PV = np.argsort(-probs_PV, axis=1, kind="stable")
        tokens_OP[step] = (order_PV == final_P[:, None]).argmax(axis=1)
    return revealed_P, positions_OP, tokens_OP


def step_ranks(traces):
    """Traces of one block each, as `rank_steps` gives them for a real model."""
    found = [ranks_of(trace) for trace in traces]
    revealed, positions, tokens = (np.stack(each)[:, None] for each in zip(*found, strict=True))
    return StepRanks(revealed, positions, tokens)


CALIBRATED_ON = range(1, 151)
CALIBRATION = [decode(*task(seed)) for seed in CALIBRATED_ON]
counted = count_formulas(step_ranks(CALIBRATION), depth=6, max_position=8, max_token=4)
frequent = sorted(counted.counts.items(), key=lambda each: -each[1])[:8]
print(f"{len(counted.counts)} different formulas; the most frequent:")
for formula, count in frequent:
    print(f"{count:5}  {' '.join(f'{i},{j}' for i, j in formula)}")

# %% [markdown]
# ## 3. Picking nodes
#
# A node saves a pass only when the steps arrive there through states that were drafted too. So
# nodes are taken one by one: always the formula to which most steps led *from what is already in
# the graph*. That count tells what a node is worth next to the others. The passes that nodes save
# are fewer (section 4 prints both numbers): every step counts as a start, while decoding starts
# only where a pass ends. And only the last state before the node has to be in the graph; the steps
# may have come there through states that are not.

# %%
graph = select_graph(counted, size=10)
led = []
for number, node in enumerate(graph.nodes):
    reach = {(), *(each.pairs for each in graph.nodes[:number])}
    led.append(sum(n for way, n in counted.ways[node.pairs].items() if way in reach))
    formula = " ".join(f"{i},{j}" for i, j in node.pairs)
    print(f"node {number}: {led[-1]:4} steps led here   {formula}")
assert led[0] == max(counted.counts[pairs] for pairs in counted.counts if len(pairs) == 1)
assert set(graph.depths) > {1}, "it looks more than one step ahead"

plot_draft_graph(graph, "draft_graph.png")
display(Image("draft_graph.png", width=640))

# %% [markdown]
# The graph grows in two directions: further ahead along the likeliest way, and sideways, to other
# masks that may come first and to the second token of a mask. Which of the two is worth more is not
# known beforehand; the counts decide. A state that can be reached in two orders is one node with
# two parents, so it is drafted only once.

# %% [markdown]
# ## 4. Does it save passes?
#
# The loop: fill the formulas from the last distribution; one pass over the present state and all
# drafts; then step as long as the new state is one of the drafts. The random numbers are those of
# the base decoder, so the output must be the same, and it is.


# %%
def filled(graph: DraftGraph, probs_PV, block_P):
    """The drafted states. A formula that needs more masks than there are drafts nothing."""
    masks = np.flatnonzero(block_P == MASK)
    surest_first = masks[np.argsort(-probs_PV[masks].max(axis=1), kind="stable")]
    order_PV = np.argsort(-probs_PV, axis=1, kind="stable")
    states = set()
    for node in graph.nodes:
        if max(len(node.pairs), *(i for i, _ in node.pairs)) < len(masks):
            state_P = block_P.copy()
            for i, j in node.pairs:
                state_P[surest_first[i]] = order_PV[surest_first[i], j]
            states.add(tuple(state_P))
    return states


def spiffy(anchor, uniforms_OP, graph):
    """The filled block, and the passes that it took."""
    block_P = np.full(P, MASK)
    probs_PV, passes, step = marginals(anchor, block_P), 1, 0
    block_P = reveal(probs_PV, block_P, uniforms_OP[step])
    while MASK in block_P:
        drafts = filled(graph, probs_PV, block_P)
        passes += 1  # the present state and all drafts, in one pass
        is_known = True
        while is_known and MASK in block_P:
            step += 1
            probs_PV = marginals(anchor, block_P)
            block_P = reveal(probs_PV, block_P, uniforms_OP[step])
            is_known = tuple(block_P) in drafts
    return block_P, passes


HELD_OUT = range(1000, 1060)
FINAL = {seed: decode(*task(seed))[-1][1] for seed in HELD_OUT}


def reduction(graph):
    """How many times fewer passes than the base decoder, on blocks not calibrated on."""
    passes = 0
    for seed in HELD_OUT:
        block_P, taken = spiffy(*task(seed), graph)
        assert (block_P == FINAL[seed]).all(), "drafts changed the output"
        passes += taken
    return P * len(HELD_OUT) / passes


SIZES = (1, 3, 5, 8, 10)
accumulated = select_graph(counted, size=10, weight="accumulated")
GRAPHS = {
    "calibrated": graph.first,
    "calibrated, accumulated": accumulated.first,
    "chain (SSD)": chain,
    "star": star,
}
found = {name: [reduction(make(size)) for size in SIZES] for name, make in GRAPHS.items()}
assert reduction(DraftGraph()) == 1.0

# NFE reduction of LLaDA-8B-Instruct on GSM8K, arXiv 2509.18085.
PUBLISHED = {3: 2.37, 5: 2.68, 8: 2.95, 10: 3.04}
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, values in found.items():
    axis.plot(SIZES, values, marker="o", label=name)
axis.plot(PUBLISHED.keys(), PUBLISHED.values(), "k:", label="Spiffy's paper: LLaDA-8B, GSM8K")
axis.set(xlabel="D: drafted states", title="how many times fewer passes")
axis.legend(fontsize=8)
for name, values in found.items():
    print(f"{name:24}", "  ".join(f"D={d}: {x:.2f}" for d, x in zip(SIZES, values, strict=True)))

# %%
steps = P * len(CALIBRATED_ON)
saved = steps - sum(spiffy(*task(seed), graph)[1] for seed in CALIBRATED_ON)
print(f"calibration blocks: nodes count {sum(led):,} steps; {saved:,} of {steps:,} passes saved")
assert saved < sum(led)

best = np.array(found["calibrated"])
assert (np.diff(best) > 0).all()
for name in ("calibrated, accumulated", "chain (SSD)", "star"):
    lead = best - found[name]
    assert lead[0] == 0 and (np.diff(lead) > 0).all(), name

# %% [markdown]
# - A **star** looks one step ahead only, so it never saves more than every second pass.
# - A **chain** bets everything on the likeliest tokens in the likeliest order. Its first nodes are
#   as good as any; the later ones are hardly ever reached.
# - The **calibrated** graph spends those nodes on other orders. It is never worse here, and its
#   lead grows with `D`.
# - **Accumulated** is Spiffy's own weight, a formula's count and its parents'. It favours whatever
#   follows a frequent formula.
#
# The paper's curve stands higher because a large model's answers are easier to foresee than this
# language, whose tokens are drawn at temperature 1. It bends in the same way.
#
# The output is the same in every case. This needs the keys and values around a block to stay as
# they are while it is filled: with the dual cache, or a block-causal model.

# %%
assert max(found["star"]) <= 2.0
assert found["chain (SSD)"][-1] - found["chain (SSD)"][1] < 0.02

# %% [markdown]
# ## 5. Price
#
# A pass with `D` drafts reads `1 + D` times as many rows. On an accelerator that is limited by
# reading its weights, these rows are nearly free; on a CPU they are not. Drafting pays as long as
# the pass costs less than the reduction above: `pass_ratio` below `nfe_reduction` in jaxspec's
# tables.
#
# ```
# jaxspec calibrate --target.path LLaDA-8B-Instruct --source gsm8k --output graph.json
# python eval.py ... --diffusion.graph graph.json --diffusion.num-drafts 3 10
# ```
