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
# # Normalisation, the weight of the chain, and where it saturates
#
# *Teaching Diffusion to Speculate Left-to-Right* (arXiv 2606.11552) adds a chain reward `R` to the
# loss with a weight `alpha_c`, and its best value is 40. The number means nothing by itself. It
# depends on how the cross-entropy next to it is normalised, which the paper does not say, and the
# same 40 is little for a poor drafter and too much to matter for a perfect one. This notebook shows
# all three: the factor between the two normalisations, what a drafter of a given quality gets from
# the chain, and how the accepted length saturates as `alpha_c` grows.
#
# `G = 15` drafted slots (a block of 16 without its anchor); `p` is the probability of the right
# token of a slot. [losses.py](losses.py) introduces the losses one by one.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxspec.losses import (
    LossConfig,
    LossWeights,
    SlotStatistics,
    loss_terms,
    positional_weights,
    total_from_terms,
)

G = 15
slots = np.arange(1, G + 1)
w = np.asarray(positional_weights(G, decay=10.0))
plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})


def panels(count, *, height=3.2):
    return plt.subplots(1, count, figsize=(4.6 * count, height), layout="constrained")


def loss_of(log_p, alpha, *, normalize, decay=10.0, focal=0.0):
    """Decayed cross-entropy plus the focal term minus alpha_c * R, of one block."""
    config = LossConfig(decay=decay, normalize=normalize)
    weights = LossWeights.from_config(config).replace(terms=(focal, alpha))
    block = SlotStatistics(log_p_NG=log_p[None], correct_NG=log_p[None] > jnp.log(0.5))
    terms = loss_terms(block, config=config, weights=weights)
    return total_from_terms(terms, config=config, weights=weights)


# %% [markdown]
# ## 1. One factor between the two readings
#
# `normalize="block"` is the paper's equation: sum over the slots of a block, mean over blocks.
# `normalize="weight"` is what trainers do: divide by the sum of the positional weights. With `decay
# = 10` the weights of a full block sum to 8.16, so the cross-entropy is 8.16 times smaller under
# `"weight"`. The chain reward has its own divisor, the number of slots, and does not change. Hence,
# on full blocks, `"weight"` with `alpha_c` is `"block"` with `8.16 * alpha_c`, but for the scale of
# the whole loss.

# %%
factor = float(w.sum())
print(f"sum of the weights: {factor:.2f}")
assert round(factor, 2) == 8.16

gradient = jax.jit(jax.grad(loss_of), static_argnames=("normalize", "decay"))
log_p = jnp.log(jnp.asarray(0.9 * np.exp(-slots / 30), jnp.float32))
for alpha in (5.0, 40.0):
    by_weight = gradient(log_p, alpha, normalize="weight")
    by_block = gradient(log_p, alpha * factor, normalize="block")
    np.testing.assert_allclose(factor * by_weight, by_block, rtol=1e-4)

# %% [markdown]
# AdamW divides by the size of recent gradients, so the scale of the whole loss hardly matters to
# it; the ratio of the terms does. A weight of 40 in one program can therefore be a weight of 5 in
# another. (Short blocks at the end of an answer have fewer weights, so there the factor is
# smaller.)

# %% [markdown]
# ## 2. Who pulls harder at the first slot?
#
# Take a block in which every slot has the same `p`. The pull on `log p` of slot 1 is 1 from the
# block's cross-entropy, whatever `p` is, and `alpha_c / G * (p + p^2 + ... + p^G)` from the chain.
# The two are equal at some `p`: below it the cross-entropy leads, above it the chain.

# %%
p = np.linspace(0.005, 0.995, 400)
rho_sum = (p[:, None] ** slots).sum(axis=1)
ALPHAS = (5, 10, 20, 40)
lead = {}
figure, axes = panels(2)
for axis, normalize, scale in zip(axes, ("block", "weight"), (1.0, factor), strict=True):
    for alpha in ALPHAS:
        ratio = scale * alpha / G * rho_sum
        lead[normalize, alpha] = float(np.interp(1.0, ratio, p))
        label = f"{alpha}: chain leads from p = {lead[normalize, alpha]:.2f}"
        axis.semilogy(p, ratio, label=label)
    axis.axhline(1.0, color="black", ls="--")
    axis.set(xlabel="p of every slot", title=f'chain / cross-entropy at slot 1, "{normalize}"')
    axis.legend(title="alpha_c", fontsize=7)
assert abs(lead["block", 40] - 0.27) < 0.01
assert abs(lead["block", 5] - 0.75) < 0.01
assert abs(lead["weight", 40] - 0.04) < 0.01
assert abs(lead["weight", 5] - lead["block", 40]) < 0.01

# %% [markdown]
# With `"block"` and 40 the chain leads as soon as a slot is right about a quarter of the time; with
# `"weight"` and 40 it leads almost from the start. That is the whole difference between the two.

# %% [markdown]
# ## 3. Saturation at both ends
#
# What a network changes is not `log p` but a logit, and `d log p / d logit = 1 - p`: a slot that is
# right already has nothing to gain. In a block of equal slots the chain's pull on the logit of slot
# `k` is `alpha_c / G * (1 - p) * (p^k + ... + p^G)`, and the sum telescopes:
#
# `alpha_c / G * (p^k - p^(G + 1))`
#
# It is 0 at `p = 0` (the slot is never reached), 0 at `p = 1` (there is nothing left to gain, since
# `R` is at most 1), and largest at `p = (k / (G + 1)) ^ (1 / (G + 1 - k))`.

# %%
logits = jnp.log(p) - jnp.log1p(-p)


def chain_at_logits(z):
    """alpha_c * R with alpha_c = 40, of a block of independent slots."""
    log_p = jax.nn.log_sigmoid(z)
    uniform = loss_of(log_p, 0.0, normalize="block", decay=None)
    return uniform - loss_of(log_p, 40.0, normalize="block", decay=None)


pull = jax.jit(jax.vmap(jax.grad(chain_at_logits)))(jnp.tile(logits[:, None], (1, G)))
figure, axes = panels(2)
for k in (1, 4, 8, 15):
    telescoped = 40 / G * (p**k - p ** (G + 1))
    np.testing.assert_allclose(pull[:, k - 1], telescoped, atol=1e-3)
    peak = (k / (G + 1)) ** (1 / (G + 1 - k))
    assert abs(p[int(np.argmax(telescoped))] - peak) < 0.01
    axes[0].plot(p, pull[:, k - 1], label=f"slot {k}: most at p = {peak:.2f}")
axes[0].plot(p, 1 - p, color="black", ls="--", label="cross-entropy, slot 1")
axes[0].set(xlabel="p of every slot", title="pull on a logit, alpha_c = 40")
axes[0].legend(fontsize=7)
axes[1].plot(p, rho_sum, label="G * R: expected accepted length of sampled drafts")
axes[1].plot(p, G * p, color="black", ls="--", label="right slots, wherever they are")
axes[1].set(xlabel="p of every slot", title="what the chain counts")
axes[1].legend(fontsize=7)

# %% [markdown]
# The first slot is pulled most by drafters of middling quality (`p = 0.83`), the last one only by
# very good ones (`p = 0.94`): the chain moves along the block by itself as the drafter improves.

# %% [markdown]
# ## 4. A drafter with a budget
#
# If slots could be improved independently, every loss would end at `p = 1`. A small network cannot:
# what it spends on one slot is missing in another. The smallest model of that has logits `z[g] = 2
# - g / 4 + 20 * share[g]`: later slots are harder, and the shares are positive and sum to 1. We
# minimise the loss over the shares, for many values of `alpha_c` at once, and look at the expected
# accepted length of sampled drafts, `p[1] + p[1] p[2] + ...`.

# %%
BUDGET, EASE = 20.0, jnp.asarray(2.0 - slots / 4, jnp.float32)


def log_p_of(theta):
    return jax.nn.log_sigmoid(EASE + BUDGET * jax.nn.softmax(theta))


def accepted_of(theta):
    return jnp.exp(jnp.cumsum(log_p_of(theta))).sum()


def best_shares(objective):
    """Gradient descent with normalised steps that shrink: no learning rate to tune."""
    slope = jax.grad(objective)

    def step(theta, size):
        g = slope(theta)
        return theta - size * g / (jnp.linalg.norm(g) + 1e-9), None

    return jax.lax.scan(step, jnp.zeros(G), jnp.geomspace(0.3, 1e-3, 600))[0]


@jax.jit
def ladder(alphas):
    def one(alpha, normalize):
        return best_shares(lambda theta: loss_of(log_p_of(theta), alpha, normalize=normalize))

    rows = {n: jax.vmap(lambda a, n=n: one(a, n))(alphas) for n in ("block", "weight")}
    uniform = best_shares(lambda t: loss_of(log_p_of(t), 0.0, normalize="block", decay=None))
    return rows, uniform, best_shares(lambda theta: -accepted_of(theta))


alphas = np.concatenate([[0.0], np.geomspace(0.5, 400, 25)]).astype(np.float32)
thetas, uniform, best = ladder(alphas)
length = {name: np.asarray(jax.vmap(accepted_of)(rows)) for name, rows in thetas.items()}
most = float(accepted_of(best))
print(f"uniform {float(accepted_of(uniform)):.2f}, decay {length['block'][0]:.2f}, most {most:.2f}")

# %%
# Average tau over six benchmarks for decay 10 and focal 0.3: arXiv 2606.11552, Llama-3-8B.
PAPER = {0: 2.892, 5: 2.973, 10: 3.143, 20: 3.146, 30: 3.365, 40: 3.420, 50: 3.358}

figure, axes = panels(3)
axes[0].plot(slots, jnp.exp(log_p_of(uniform)), color="gray", label="uniform")
axes[0].plot(slots, jnp.exp(log_p_of(thetas["block"][0])), label="decay 10")
at_40 = int(np.argmin(np.abs(alphas - 40)))
axes[0].plot(slots, jnp.exp(log_p_of(thetas["block"][at_40])), label="decay 10, chain 40")
axes[0].set(xlabel="slot", title="p: where the budget goes", ylim=(0, 1.02))
axes[0].legend(fontsize=8)
for name, values in length.items():
    axes[1].semilogx(alphas[1:], values[1:], marker=".", label=f'"{name}"')
axes[1].axhline(most, color="black", ls="--", label="the most that the budget allows")
axes[1].axhline(length["block"][0], color="gray", ls=":", label="decay alone")
axes[1].set(xlabel="alpha_c", title="accepted length in the toy")
axes[1].legend(fontsize=7)
axes[2].plot(PAPER.keys(), PAPER.values(), marker="o", color="black")
axes[2].set(xlabel="alpha_c", title="tau in the paper")

# %% [markdown]
# The uniform loss spreads the budget. Decay moves some of it forward, always the same way. The
# chain moves it to where the accepted run can still grow, and gives up the slots that it would
# hardly ever reach. The gain saturates: from some `alpha_c` on, the reward decides alone, and a
# larger weight changes nothing. Under `"weight"` it is the same curve, moved to the left by the
# factor 8.16.
#
# The toy has no training, so it does not show why too much is too much: the paper's tau falls from
# 40 to 50. A reward that is 0 until the first slots are right cannot start a drafter
# ([losses.py](losses.py), section 4), so what the cross-entropy still contributes is needed.

# %%
rise = np.diff(length["block"])
assert rise.min() > -0.02, "more chain never shortens what is accepted"
assert float(accepted_of(uniform)) < length["block"][0] < length["block"][at_40] <= most + 0.01
share_at_40 = (length["block"][at_40] - length["block"][0]) / (most - length["block"][0])
moved = np.interp(alphas[1:] * factor, alphas, length["block"])
inside = alphas[1:] * factor < alphas[-1]
np.testing.assert_allclose(length["weight"][1:][inside], moved[inside], atol=0.03)
print(f'share of the possible gain at alpha_c = 40, "block": {share_at_40:.0%}')

# %%
# With the focal term, of a block whose first wrong slot is the eleventh.
log_p = jnp.log(jnp.asarray(0.7 * np.exp(-slots / 30), jnp.float32))
default = -gradient(log_p, 40.0, focal=0.3, normalize="block")
for focal in (0.3, 0.04):
    by_weight = -factor * gradient(log_p, 5.0, focal=focal, normalize="weight")
    at_1, _, at_11 = by_weight[::5][:3] / default[::5][:3]
    print(f"focal {focal}: {at_1:.2f} times the default's pull at slot 1, {at_11:.2f} at slot 11")
np.testing.assert_allclose(by_weight, default, rtol=0.05)

# %% [markdown]
# ## What to take along
#
# - State the normalisation with every `alpha_c`. Here both are settings: `--loss.chain 40
#   --loss.focal 0.3 --loss.normalize block` is the default, and `--loss.chain 5 --loss.focal 0.04
#   --loss.normalize weight` is nearly the same loss.
# - Both weights are divided by 8.16 there. The focal term has its own divisor, as the chain has, so
#   0.3 beside a `"weight"` cross-entropy is 8.16 times as strong.
# - Watch `chain_reward` in metrics.jsonl. Near 0, the chain does not act yet; only when it has left
#   0 does a change of `alpha_c` tell you anything.
