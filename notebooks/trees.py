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
# # Trees and chains: why a tree beats samples
#
# A block drafter gives a distribution for every slot in one pass. The target can read more than one
# continuation in one pass of its own, so what should the extra rows hold? One could sample several
# chains. Or one could take the likeliest prefixes, which form a tree. This notebook compares the
# two for the same number of rows, from the same marginals.
#
# `G` drafted slots, `V` tokens, `X` nodes of a tree (each is a row that the target reads), `A`
# sampled chains. We let the target agree with the drafter: its tokens follow the product of the
# marginals. A prefix of probability `P` is then what the target continues with, with probability
# `P`.

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxspec.drafters.tree import best_first_tree
from jaxspec.verify import verify_tree

plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})
G, V, MOST = 6, 6, 64


def marginals(*, vocabulary=V, temperature=1.0):
    """A block's rows [G, V]: sure at first, less so later."""
    rng = np.random.default_rng(1)
    scores_GV = rng.gumbel(size=(G, vocabulary)) * np.linspace(2.2, 0.9, G)[:, None] / temperature
    rows_GV = np.exp(scores_GV - scores_GV.max(axis=1, keepdims=True))
    return rows_GV / rows_GV.sum(axis=1, keepdims=True)


def prefix_probabilities(rows_GV):
    """P of every prefix, a list of one array for each length."""
    levels = [rows_GV[0]]
    for row_V in rows_GV[1:]:
        levels.append((levels[-1][:, None] * row_V).ravel())
    return levels


rows_GV = marginals()
levels = prefix_probabilities(rows_GV)
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
image = axis.imshow(np.sort(rows_GV, axis=1)[:, ::-1].T, cmap="viridis", vmin=0, vmax=1)
axis.set(xlabel="slot", ylabel="rank of the token", title="marginals of the block")
axis.set_xticks(range(G), range(1, G + 1))
axis.grid(visible=False)
figure.colorbar(image, ax=axis)

# %% [markdown]
# ## 1. A tree is worth the sum of its nodes
#
# A node adds one accepted token if the target's own continuation passes through it. So the expected
# accepted length of a tree is the sum of its nodes' prefix probabilities, and the best tree of `X`
# nodes is the `X` likeliest prefixes: a parent is never less likely than its child, so they always
# form a tree. `best_first_tree` finds them without listing all `V + V^2 + ... + V^G` prefixes.

# %%
best_tree = jax.jit(best_first_tree, static_argnames="num_nodes")


def tree_of(rows_GV, num_nodes):
    """Tokens, parents, depths and prefix probabilities of the best tree's nodes."""
    tree = best_tree(jnp.log(rows_GV)[None], num_nodes=num_nodes)
    tokens_X, parents_X, depths_X = (
        np.asarray(each[0]) for each in (tree.tokens_BX, tree.parents_BX, tree.depths_BX)
    )
    P_Y = np.ones(num_nodes + 1)  # row 0 is the anchor
    for node in range(num_nodes):
        P_Y[node + 1] = P_Y[parents_X[node]] * rows_GV[depths_X[node] - 1, tokens_X[node]]
    return tokens_X, parents_X, depths_X, P_Y[1:]


tokens_X, parents_X, depths_X, P_X = tree_of(rows_GV, MOST)
likeliest = np.sort(np.concatenate(levels))[::-1][:MOST]
np.testing.assert_allclose(P_X, likeliest, rtol=1e-5)
by_tree = P_X.cumsum()  # the first nodes are the tree of a smaller budget

# On a block of 3 slots and 2 tokens, all sets of 4 prefixes can be tried.
small_GV = np.array([[0.7, 0.3], [0.6, 0.4], [0.55, 0.45]])
P_of = {
    prefix: np.prod([small_GV[g, token] for g, token in enumerate(prefix)])
    for length in (1, 2, 3)
    for prefix in itertools.product(range(2), repeat=length)
}
trees = [
    chosen
    for chosen in itertools.combinations(P_of, 4)
    if all(len(prefix) == 1 or prefix[:-1] in chosen for prefix in chosen)
]
best = max(sum(P_of[prefix] for prefix in chosen) for chosen in trees)
assert np.isclose(best, sum(sorted(P_of.values())[-4:]))
print(f"{len(trees)} trees of 4 nodes; the best one accepts {best:.3f} tokens")

# %% [markdown]
# ## 2. What samples are worth
#
# `A` chains are drawn independently. A prefix is among them with probability `1 - (1 - P)^A`, so
# the expected accepted length is the sum of `P (1 - (1 - P)^A)` over all prefixes. Chains share
# their beginnings, which the target reads only once: the expected number of different nodes is the
# sum of `1 - (1 - P)^A`. A third way is to spend the rows on one chain, the likeliest token of each
# slot.

# %%
every_P = np.concatenate(levels)
chains_A = np.arange(1, 41)
held = [1 - (1 - every_P) ** chains for chains in chains_A]
by_samples = np.array([(each * every_P).sum() for each in held])
nodes_of_samples = np.array([each.sum() for each in held])
by_chain = rows_GV.max(axis=1).cumprod().cumsum()
nodes_X = np.arange(1, MOST + 1)

figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
axes[0].plot(nodes_X, by_tree, label="best-first tree")
axes[0].plot(nodes_of_samples, by_samples, marker=".", label="sampled chains, shared nodes once")
axes[0].plot(nodes_X[:G], by_chain, marker="s", ms=4, label="likeliest chain")
axes[0].set(xlabel="rows that the target reads", title="expected accepted length", xlim=(0, MOST))
axes[0].legend(fontsize=8)

inside = nodes_of_samples <= MOST
tree_there = np.interp(nodes_of_samples[inside], nodes_X, by_tree)
assert (tree_there > by_samples[inside]).all(), "a tree is better at every budget"
assert (by_tree[:G] >= by_chain - 1e-6).all()
# How many rows do samples need for what 8 nodes of a tree give?
needed = float(np.interp(by_tree[7], by_samples, nodes_of_samples))
print(f"8 nodes of the tree accept {by_tree[7]:.2f}; samples need {needed:.0f} rows for that")
assert needed > 12

# Which prefixes each of them holds, at the rows of 4 chains.
order = np.argsort(-every_P)[:MOST]
budget = round(float(nodes_of_samples[3]))
axes[1].plot(nodes_X, held[3][order], ".", label="held by 4 samples, on average")
axes[1].step(nodes_X, nodes_X <= budget, where="mid", label=f"held by a tree of {budget} nodes")
axes[1].set(xlabel="prefix, by falling probability", title="probability that it is read")
axes[1].legend(fontsize=8)

# %% [markdown]
# The reason is in the panel on the right. A sample holds a prefix with a probability that follows
# its own; so it misses likely prefixes that the tree always has, and spends rows on unlikely ones,
# because there are so many of them. Often, two samples are identical.
#
# Sampling is what a rule needs that divides by `q` ([exactness.py](exactness.py)). A tree that was
# *chosen* is judged without `q`: the walk draws the target's own token at each node and continues
# if a child holds it, which is exact for every tree.

# %% [markdown]
# ## 3. The tree itself

# %%
shown = 20
columns = {depth: np.flatnonzero(depths_X[:shown] == depth) for depth in range(1, G + 1)}
place = {-1: (0.0, 0.0)}
for depth, members in columns.items():
    for row, node in enumerate(members):
        place[int(node)] = (float(depth), (len(members) - 1) / 2 - row)
figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
for node in range(shown):
    (x, y), (from_x, from_y) = place[node], place[int(parents_X[node]) - 1]
    axis.plot([from_x, x], [from_y, y], color="tab:blue", lw=0.5 + 6 * P_X[node], alpha=0.6)
    axis.text(x, y, f"{tokens_X[node]}", ha="center", va="center", fontsize=8)
    axis.text(x, y - 0.38, f"{P_X[node]:.2f}", ha="center", va="center", fontsize=6, color="gray")
axis.text(0, 0, "anchor", ha="center", va="center", fontsize=8)
axis.set(xlabel="slot", yticks=[], title=f"the first {shown} nodes: token and probability")
axis.grid(visible=False)
assert all(parents_X[node] <= node for node in range(shown)), "parents come first"

# %% [markdown]
# ## 4. When a tree pays
#
# A tree insures against being wrong. A drafter that is sure needs no insurance: its tree is a
# chain. A drafter that knows nothing cannot be insured: there are too many prefixes. In between,
# the tree pays most. Below, a temperature sharpens or flattens the marginals.

# %%
temperatures = np.geomspace(0.1, 3, 25)
tree_16, chain_6 = [], []
for temperature in temperatures:
    each_GV = marginals(vocabulary=1000, temperature=temperature)
    tree_16.append(tree_of(each_GV, 16)[-1].sum())
    chain_6.append(each_GV.max(axis=1).cumprod().sum())
gain = np.array(tree_16) - chain_6

# tau without and with a tree, arXiv 2606.11552, Llama-3-8B, mean of six benchmarks.
PAPER = {
    "uniform": (2.376, 3.791),
    "+ decay": (2.583, 3.999),
    "+ focal": (2.892, 4.328),
    "+ chain": (3.420, 4.609),
}
figure, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
axes[0].semilogx(temperatures, chain_6, label="likeliest chain, 6 nodes")
axes[0].semilogx(temperatures, tree_16, label="tree, 16 nodes")
axes[0].fill_between(temperatures, chain_6, tree_16, alpha=0.2)
axes[0].set(xlabel="temperature of the marginals", title="expected accepted length")
axes[0].legend(fontsize=8)
for place_x, (plain, with_tree) in enumerate(PAPER.values()):
    axes[1].bar(place_x, with_tree, color="tab:orange", label="tree" if place_x == 0 else None)
    axes[1].bar(place_x, plain, color="tab:blue", label="one block" if place_x == 0 else None)
    axes[1].text(place_x, with_tree + 0.1, f"x {with_tree / plain:.2f}", ha="center", fontsize=8)
axes[1].set_xticks(range(len(PAPER)), PAPER)
axes[1].set(title="tau in the paper", ylim=(0, 5.6))
axes[1].legend(fontsize=8)

top = int(gain.argmax())
assert 0 < top < len(gain) - 1 and gain[0] < 0.3 * gain[top] and gain[-1] < 0.5 * gain[top]
ratios = [with_tree / plain for plain, with_tree in PAPER.values()]
assert ratios == sorted(ratios, reverse=True)

# %% [markdown]
# The paper's table says the same of real drafters: a tree lifts every one of them, and the better
# the drafter, the smaller the factor (1.60 for the uniform loss, 1.35 for the full one).

# %% [markdown]
# ## 5. Checked by decoding
#
# `verify_tree` walks 20,000 times. Its mean accepted length must be the sum of the nodes'
# probabilities, up to the noise of the draws.

# %%
X, WALKS = 16, 20_000
rows_YV = np.stack([rows_GV[depth] if depth < G else rows_GV[0] for depth in (0, *depths_X[:X])])


@jax.jit
def walk(key):
    shape = (WALKS, X)
    return verify_tree(
        key,
        jnp.broadcast_to(tokens_X[:X], shape),
        jnp.broadcast_to(parents_X[:X], shape),
        jnp.broadcast_to(rows_YV, (WALKS, X + 1, V)),
        depth=int(depths_X[:X].max()),
    ).num_accepted_B


lengths_B = np.asarray(walk(jax.random.key(0)))
noise = lengths_B.std() / np.sqrt(WALKS)
print(f"walked {lengths_B.mean():.3f} +- {noise:.3f}, expected {by_tree[X - 1]:.3f}")
assert abs(lengths_B.mean() - by_tree[X - 1]) < 5 * noise

# %% [markdown]
# To decode with a tree: `eval.py ... --evaluation.tree-nodes 16`; with sampled chains:
# `--evaluation.chains 4 --evaluation.temperature 1`. Rows are not free: where a pass over 16 rows
# costs twice a pass over 8, the longer accepted run has to pay for it. `jaxspec eval
# --evaluation.strategy auto` measures that and chooses.
