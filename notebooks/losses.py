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
# # What each loss asks of a drafted block
#
# A drafter proposes the tokens of a block in parallel; the target accepts them up to the first
# wrong one. Cross-entropy ignores this: an error costs as much in slot 15 as in slot 1, although
# slot 15 counts only if the fourteen before it are right. *Teaching Diffusion to Speculate
# Left-to-Right* (arXiv 2606.11552) adds three corrections. This notebook looks at one block, slot
# by slot: what each loss costs, and where its gradient goes as the probabilities of the labels
# change.
#
# `G = 15` drafted slots (a block of 16 without its anchor). `p[g]` is the probability that the
# drafter gives to the right token of slot `g`. Gradients are taken with respect to `log p`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxspec.losses import (
    OBJECTIVES,
    LossConfig,
    LossWeights,
    SlotStatistics,
    chain_reward,
    cross_entropy,
    drafter_metrics,
    first_error_focal,
    loss_terms,
    positional_weights,
    prefix_probability,
    total_from_terms,
    weighted_terms,
)

G = 15
slots = np.arange(1, G + 1)
plt.rcParams.update({"figure.dpi": 90, "axes.grid": True, "grid.alpha": 0.3})


def panels(count, *, height=3.2):
    return plt.subplots(1, count, figsize=(4.6 * count, height), layout="constrained")


# %% [markdown]
# We look at three drafters: one at the start of training, one half-trained, one good. Each is worse
# in later slots, as real ones are. Here a slot counts as correct if its label has more than half of
# the probability.

# %%
DRAFTERS = {
    "poor": 0.35 * np.exp(-slots / 12),
    "middling": 0.85 * np.exp(-slots / 20),
    "good": 0.98 * np.exp(-slots / 60),
}


def one_block(p):
    p = jnp.asarray(p, jnp.float32)[None]
    return SlotStatistics(log_p_NG=jnp.log(p), correct_NG=p > 0.5)


figure, axes = panels(2)
for name, p in DRAFTERS.items():
    block = one_block(p)
    accepted = float(drafter_metrics(block)["accepted"][0])
    axes[0].plot(slots, p, marker=".", label=f"{name}: accepts {accepted:.0f}")
    axes[1].plot(slots, prefix_probability(block.log_p_NG, mask_NG=None)[0], marker=".")
axes[0].set(xlabel="slot", ylabel="p", title="probability of the label", ylim=(0, 1))
axes[1].set(xlabel="slot", title="product up to the slot (the chain)", ylim=(0, 1))
axes[0].legend()

# %% [markdown]
# ## 1. Positional weights
#
# `w[g] = exp(-g / decay)`. `decay=None` (or infinity) is the uniform baseline; the paper's best is
# 10. The weights of a block then sum to 8.16 instead of 15.

# %%
figure, axis = panels(1)
for decay in (None, 20.0, 10.0, 7.0, 4.0):
    weights = positional_weights(G, decay=decay)
    axis.plot(slots, weights, marker=".", label=f"decay {decay}: sum {float(weights.sum()):.2f}")
axis.set(xlabel="slot", ylabel="weight", title="positional weights", ylim=(0, 1.05))
axis.legend()

# %% [markdown]
# ## 2. Cross-entropy, and its two normalisations
#
# The paper's equation sums over the slots of a block and averages over blocks
# (`normalize="block"`). Trainers divide by the sum of the weights (`normalize="weight"`). Either
# gradient depends only on the slot, not on `p`: every nat is worth the same.

# %%
w = positional_weights(G, decay=10.0)
log_p = one_block(DRAFTERS["middling"]).log_p_NG
figure, axes = panels(2)
for normalize, marker in (("block", "o"), ("weight", "x")):
    value, gradient = jax.value_and_grad(
        lambda x, normalize=normalize: cross_entropy(x, weights_G=w, normalize=normalize)
    )(log_p)
    label = f'"{normalize}": loss {float(value):.2f}'
    axes[0].plot(slots, -gradient[0], marker=marker, label=label)
axes[0].set(xlabel="slot", title="cross-entropy: -dL / dlog p", ylim=(0, None))
axes[0].legend()

# Per-slot cost, for scale: what is summed.
axes[1].bar(slots, -log_p[0], color="lightgray", label="-log p")
axes[1].bar(slots, -w * log_p[0], width=0.5, label="weighted, decay 10")
axes[1].set(xlabel="slot", ylabel="nats", title="what each slot costs")
axes[1].legend()

# %% [markdown]
# The ratio of the two is the sum of the weights: 8.16. The chain reward is normalised in its own
# way, so its weight of 40 counts 8.16 times as much next to a `"weight"` cross-entropy as next to a
# `"block"` one. That is why the normalisation is a setting, and why it matters when you compare
# numbers with a paper's.

# %% [markdown]
# ## 3. First-error focal term
#
# Plain cross-entropy at the first wrong slot of each block and nowhere else: that slot ended the
# accepted run. It moves along the block as the drafter improves. In a block without an error the
# term is 0 and has no gradient.

# %%
figure, axis = panels(1)
for offset, (name, p) in enumerate(DRAFTERS.items()):
    block = one_block(p)
    value, gradient = jax.value_and_grad(first_error_focal)(
        block.log_p_NG, correct_NG=block.correct_NG, weights_G=w
    )
    axis.bar(
        slots + 0.25 * (offset - 1), -gradient[0], width=0.25, label=f"{name}: {float(value):.2f}"
    )
axis.set(xlabel="slot", title="first-error focal: -dL / dlog p", ylim=(0, 1.6))
axis.legend(title="value")

# %% [markdown]
# ## 4. Chain reward
#
# `R = 1/G * sum_g rho[g]` with `rho[g] = p[0] * ... * p[g]`: a soft accepted length, divided by
# the number of slots. Its gradient is a suffix sum, `dR / dlog p[k] = 1/G * sum_{g >= k} rho[g]`:
# a slot is worth what depends on it, so the weights come from the drafter itself and fall along
# the block. The cell below checks the closed form.

# %%
figure, axes = panels(2)
for name, p in DRAFTERS.items():
    log_p = one_block(p).log_p_NG
    value, gradient = jax.value_and_grad(chain_reward)(log_p)
    closed_form = np.cumsum(np.cumprod(p)[::-1])[::-1] / G
    np.testing.assert_allclose(gradient[0], closed_form, rtol=1e-4)
    axes[0].plot(slots, gradient[0], marker=".", label=f"{name}: R = {float(value):.3f}")
    axes[1].semilogy(slots, gradient[0], marker=".")
axes[0].set(xlabel="slot", title="chain: dR / dlog p")
axes[1].set(xlabel="slot", title="the same, logarithmic")
axes[0].legend()

# %% [markdown]
# ### What the chain does when early slots are poor
#
# We make one slot of a good block poor. All slots after it lose their gradient, because they are
# hardly ever reached; but so do the slots before it, because less depends on them. If the *first*
# slot is poor, the whole chain has almost no gradient, the first slot included: the reward alone
# cannot get a drafter started. Cross-entropy and the focal term, whose gradients do not fade, do
# that; the chain then rewards what has become reachable.

# %%
chain_gradient = jax.jit(jax.vmap(jax.grad(lambda log_p: chain_reward(log_p[None]))))
blocks = np.tile(DRAFTERS["good"], (G, 1))
blocks[np.arange(G), np.arange(G)] = 0.05
figure, axes = panels(2, height=3.6)
image = axes[0].imshow(
    chain_gradient(np.log(blocks)), cmap="viridis", extent=(0.5, 15.5, 15.5, 0.5)
)
axes[0].set(xlabel="slot", ylabel="the slot with p = 0.05", title="dR / dlog p")
axes[0].grid(visible=False)
figure.colorbar(image, ax=axes[0])

first = np.linspace(0.01, 1.0, 60)
blocks = np.tile(DRAFTERS["good"], (len(first), 1))
blocks[:, 0] = first
gradients = np.asarray(chain_gradient(np.log(blocks)))
for slot in (1, 2, 5, 10):
    axes[1].plot(first, 40 * gradients[:, slot - 1], label=f"chain at slot {slot}, times 40")
axes[1].axhline(float(w[0]), color="black", ls="--", label='cross-entropy at slot 1, "block"')
axes[1].axhline(float(w[0] / w.sum()), color="black", ls=":", label='the same, "weight"')
axes[1].set(xlabel="p of slot 1, the others good", title="gradient as slot 1 improves")
axes[1].legend(fontsize=7)

# %% [markdown]
# ## 5. Together
#
# `L = L_CE + focal * L_fe - chain * R`. Below is the pull on each slot for the ladder of losses and
# the three drafters. `loss_terms` returns the parts as (numerator, denominator), so that devices
# can add them up before they divide; `LossWeights` passes decay, focal and chain as arrays, so one
# compiled function serves every row.

# %%
LADDER = {
    "uniform": LossConfig(decay=None, focal=0.0, chain=0.0),
    "+ decay 10": LossConfig(decay=10.0, focal=0.0, chain=0.0),
    "+ focal 0.3": LossConfig(decay=10.0, focal=0.3, chain=0.0),
    "+ chain 40": LossConfig(),
}


def pull_of(normalize):
    config = LossConfig(normalize=normalize)

    def loss(log_p, correct, weights):
        block = SlotStatistics(log_p_NG=log_p[None], correct_NG=correct[None])
        terms = loss_terms(block, config=config, weights=weights)
        return total_from_terms(terms, config=config, weights=weights)

    gradient = jax.jit(jax.grad(loss))
    return lambda p, row: -gradient(np.log(p), p > 0.5, LossWeights.from_config(row))


for normalize in ("block", "weight"):
    pull = pull_of(normalize)
    figure, axes = panels(3)
    for axis, (drafter, p) in zip(axes, DRAFTERS.items(), strict=True):
        for name, row in LADDER.items():
            axis.semilogy(slots, pull(p, row), marker=".", label=name)
        axis.set(xlabel="slot", title=f'{drafter}, "{normalize}"')
    axes[0].set_ylabel("-dL / dlog p")
    axes[0].legend(fontsize=8)

# %% [markdown]
# With the poor drafter the chain reaches two or three slots, with the good one the whole block: the
# better the drafter, the more of the block takes part. The front always gets most, because the rest
# of the run depends on it. The focal term is the small step at the first error. With `"weight"` the
# cross-entropy is eight times smaller, and the same chain towers over it.

# %% [markdown]
# ## 6. Neighbouring objectives
#
# Others have pursued the same aim in other ways. Below are the gradients of those that need only
# labels: D-PACE weights cross-entropy by a smoothed suffix sum, Spec-AUF stops after the first
# failure, streak distillation is the chain without a divisor. (LK, total variation and forward KL
# compare whole distributions with the target's, so they need its logits.)


# %%
def objective_pull(name, p):
    block = one_block(p)

    def block_sum(log_p):
        values, counted = OBJECTIVES[name].slot_values(block.replace(log_p_NG=log_p), None)
        return jnp.sum(jnp.where(counted, values, 0.0))

    return -jax.grad(block_sum)(block.log_p_NG)[0]


figure, axes = panels(3)
for axis, (drafter, p) in zip(axes, DRAFTERS.items(), strict=True):
    for name in ("cross_entropy", "d_pace", "spec_auf", "streak"):
        axis.plot(slots, objective_pull(name, p), marker=".", label=name)
    axis.set(xlabel="slot", title=drafter)
axes[0].set_ylabel("-dL / dlog p")
axes[0].legend(fontsize=8)

# %% [markdown]
# ## 7. Blocks that end early
#
# At the end of an answer a block has fewer tokens than slots. Masked slots and all slots after them
# add nothing; the chain divides by the number of slots that are left, so a short perfect block
# scores 1 too.

# %%
mask = jnp.arange(G)[None] < 5
perfect = jnp.zeros((1, G))
print("chain of a perfect block of 5:", float(chain_reward(perfect, mask_NG=mask)))
ragged = jnp.where(mask, one_block(DRAFTERS["good"]).log_p_NG, jnp.nan)
gradient = jax.grad(lambda x: chain_reward(x, mask_NG=mask))(ragged)
print("gradient with junk after the mask:", np.round(np.asarray(gradient[0, :8]), 3))

# %% [markdown]
# ## 8. A term of your own
#
# A term is a function of the slots that returns a numerator and a denominator. Write it, and name
# it in `LossConfig.extra` with its weight; the package stays as it is. As an example, the chance
# that a sampled draft is not the label, `1 - p`: the mean absolute error of *Robust Loss Functions
# under Label Noise* (arXiv 1712.09482), up to a factor. Its gradient is `p`, so it pulls most on
# slots that are nearly right and leaves hopeless ones alone.


# %%
def miss(slots, *, mask_NG, weights_G):
    return weighted_terms(
        1 - jnp.exp(slots.log_p_NG), weights_G=weights_G, mask_NG=mask_NG, normalize="block"
    )


def pull_with_miss(p, weight):
    # `__main__` is the module that a notebook's cells are in.
    config = LossConfig(decay=None, focal=0.0, chain=0.0, extra=(f"__main__:miss={weight}",))

    def loss(log_p):
        terms = loss_terms(one_block(p).replace(log_p_NG=log_p), config=config)
        return total_from_terms(terms, config=config)

    return -jax.grad(loss)(one_block(p).log_p_NG)[0]


figure, axes = panels(3)
for axis, (drafter, p) in zip(axes, DRAFTERS.items(), strict=True):
    for weight in (0, 1, 4):
        axis.plot(slots, pull_with_miss(p, weight), marker=".", label=f"miss={weight}")
    np.testing.assert_allclose(pull_with_miss(p, 4), 1 + 4 * p, rtol=1e-4)
    axis.set(xlabel="slot", title=drafter, ylim=(0, None))
axes[0].set_ylabel("-dL / dlog p")
axes[0].legend(fontsize=8)

# %% [markdown]
# To train with it, put the function into a file of your own, `my_terms.py`, and name the file:
#
# ```
# python train.py --config configs/quickstart.py --workdir runs/miss --loss.extra my_terms.py:miss=4
# ```
#
# A configuration file can also define the function itself and say
# `LossConfig(extra=(f"{__file__}:miss=4",))`. metrics.jsonl then has a column `extra/miss`, tables
# call the loss "full+miss", and provenance.json records where the function came from. Many devices
# add up numerators and denominators before they divide: that is why a term returns both. If the
# denominator follows from the masks alone, as here, `Term(miss, counts_follow_predictions=False)`
# in place of the bare function makes gradient accumulation exact too.
