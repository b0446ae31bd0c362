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
# # Exactness: the rejection rules as laws, and three biased ones that are caught
#
# Speculative decoding promises that its output has the target's own distribution. That is a
# statement about a law, so it can be checked as one. On a tiny vocabulary every draft, every coin
# and every next token can be listed; the law of the output follows with nothing left to chance.
# This notebook does so with the functions that decoding runs, and then with three rules that look
# reasonable and are wrong.
#
# `V = 3` tokens and `G = 2` drafted slots, so a round emits up to 3 tokens. `p` is the target, `q`
# the draft distribution. `p` depends on the tokens before; `q` is one row for each slot, as a block
# drafter's is.

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from jaxspec.verify.block import block_law
from jaxspec.verify.point_mass import point_mass_law
from jaxspec.verify.token import token_law

jax.config.update("jax_enable_x64", True)
plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})
V, G = 3, 2
H = G + 1  # rows that the target computes

rng = np.random.default_rng(2)
q_GV = rng.dirichlet(np.full(V, 2.0), size=G)
# The row of each prefix: one for the empty prefix, V after one token, V * V after two.
p_rows = [rng.dirichlet(np.full(V, 0.8), size=(V,) * h) for h in range(H)]
# The drafter knows something of the target.
p_rows = [0.5 * p_rows[h] + 0.5 * q_GV[min(h, G - 1)] for h in range(H)]

# %% [markdown]
# ## 1. One slot
#
# Token verification accepts a drafted `x` with probability `min(1, p(x) / q(x))`. Since `x` was
# drawn from `q`, it is emitted with probability `min(p(x), q(x))`. Rejections happen with
# probability `1 - sum min(p, q)`; the next token is then drawn from `(p - q)_+`, renormalised. Both
# parts together are `p`, whatever `q` is.

# %%
p_V, q_V = p_rows[0], q_GV[0]
accepted_V = np.minimum(p_V, q_V)
residual_V = np.maximum(p_V - q_V, 0)
np.testing.assert_allclose(accepted_V + residual_V, p_V)
# All of the rejected probability goes to the residual, which has exactly that size.
assert np.isclose(1 - accepted_V.sum(), residual_V.sum())

place = np.arange(V)
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.bar(place - 0.2, q_V, 0.35, color="lightgray", label="q, the draft")
axis.bar(place + 0.2, accepted_V, 0.35, label="accepted: min(p, q)")
axis.bar(place + 0.2, residual_V, 0.35, bottom=accepted_V, label="after a rejection: (p - q)+")
axis.plot(place + 0.2, p_V, "k_", markersize=26, label="p, the target")
axis.set(xticks=place, xlabel="token", title=f"accepted with probability {accepted_V.sum():.2f}")
axis.legend(fontsize=8)

# %% [markdown]
# ## 2. The whole law of a round
#
# A rule in `jaxspec.verify` is a `Law`: the chance that each slot's coin shows heads, how the
# accepted length follows from the coins, and the weights of the next token. `output_law` lists
# everything. What a round leaves open (the tokens after a rejection's correction) is the target's
# own, so every row of the result is a law over all `V ** 3 = 27` sequences of three tokens.

# %%
DRAFTS_BG = np.array(list(itertools.product(range(V), repeat=G)))
SEQUENCES = list(itertools.product(range(V), repeat=H))
HONEST_B = q_GV[0][DRAFTS_BG[:, 0]] * q_GV[1][DRAFTS_BG[:, 1]]


def target_law():
    law = np.ones((V,) * H)
    for h in range(H):
        law = law * p_rows[h].reshape(p_rows[h].shape + (1,) * (H - 1 - h))
    return law


def target_rows(drafts_BG):
    rows = [np.stack([p_rows[h][tuple(draft[:h])] for draft in drafts_BG]) for h in range(H)]
    return np.stack(rows, axis=1)


def token_rule(drafts_BG, told_GV):
    told_BGV = np.broadcast_to(told_GV, (len(drafts_BG), G, V))
    return token_law(jnp.asarray(drafts_BG), jnp.asarray(told_BGV), target_rows(drafts_BG))


def block_rule(drafts_BG, told_GV):
    told_BGV = np.broadcast_to(told_GV, (len(drafts_BG), G, V))
    return block_law(jnp.asarray(drafts_BG), jnp.asarray(told_BGV), target_rows(drafts_BG))


def point_mass_rule(drafts_BG, told_GV):
    del told_GV  # A rule for deterministic drafts needs no q.
    return point_mass_law(jnp.asarray(drafts_BG), target_rows(drafts_BG))


def output_law(rule, weights_B, told_GV=q_GV):
    """The law of three tokens, [V, V, V], and the probability of each accepted length, [H].

    `weights_B`: how likely each draft is. `told_GV`: the q that the rule is told.
    """
    law = rule(DRAFTS_BG, told_GV)
    heads_BG = np.asarray(law.heads_BG)
    emitted, lengths_H = np.zeros((V,) * H), np.zeros(H)
    next_HBV = [np.asarray(law.next_weights(jnp.full(len(DRAFTS_BG), n))) for n in range(H)]
    for coins in itertools.product([False, True], repeat=G):
        chance_B = weights_B * np.where(coins, heads_BG, 1 - heads_BG).prod(axis=1)
        n = int(law.count(jnp.asarray([coins]))[0])
        lengths_H[n] += chance_B.sum()
        for draft, chance, weights_V in zip(DRAFTS_BG, chance_B, next_HBV[n], strict=True):
            if chance == 0:
                continue
            for token in range(V):
                start = (*draft[:n], token)
                share = np.array(chance * weights_V[token] / weights_V.sum())
                for h in range(n + 1, H):  # the rest is the target's
                    share = share[..., None] * p_rows[h][start]
                emitted[start] += share
    return emitted, lengths_H


def distance(law):
    """Total variation between a law and the target's."""
    return 0.5 * np.abs(law - target_law()).sum()


ARGMAX_B = (q_GV.argmax(axis=1) == DRAFTS_BG).all(axis=1).astype(float)
EXACT = {
    "token": output_law(token_rule, HONEST_B),
    "block": output_law(block_rule, HONEST_B),
    "point mass, argmax drafts": output_law(point_mass_rule, ARGMAX_B),
}
for name, (law, lengths_H) in EXACT.items():
    assert np.isclose(law.sum(), 1) and distance(law) < 1e-12
    print(f"{name:26} accepts {lengths_H @ np.arange(H):.3f} of {G}; distance {distance(law):.0e}")

# %%
names = ["".join(map(str, each)) for each in SEQUENCES]
at = np.arange(len(names))
figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
axis.bar(at, target_law().ravel(), color="lightgray", label="target alone")
for marker, (name, (law, _)) in zip("x+.", EXACT.items(), strict=True):
    axis.plot(at, law.ravel(), marker, label=name)
axis.set(xticks=at, title="law of the first three tokens")
axis.set_xticklabels(names, rotation=90, fontsize=8)
axis.legend(fontsize=8)

# %% [markdown]
# The three rules accept different numbers of drafts, and emit the same law. Exactness and speed are
# two questions: `q` decides how much is accepted, never what is emitted.
#
# An example with known answers: `p = (1/3, 2/3)` and `q = (2/3, 1/3)` in both slots. Token
# verification accepts 10/9 tokens on average, and block verification 11/9, because a token that is
# likelier under `p` makes up for an earlier one that is not. All of the gain is from the draft
# `(0, 1)`: block verification accepts both tokens, token verification one on average. Of `(1, 0)`
# both accept 3/2, since a surplus is not kept for later.

# %%
kept = p_rows, q_GV
p_rows = [np.broadcast_to([1 / 3, 2 / 3, 0], (V,) * (h + 1)) for h in range(H)]
simple_GV = np.tile([2 / 3, 1 / 3, 0], (G, 1))
simple_B = simple_GV[0][DRAFTS_BG[:, 0]] * simple_GV[1][DRAFTS_BG[:, 1]]
for rule, expected, of_01 in ((token_rule, 10 / 9, 1), (block_rule, 11 / 9, 2)):
    law, lengths_H = output_law(rule, simple_B, simple_GV)
    assert np.isclose(lengths_H @ np.arange(H), expected)
    assert distance(law) < 1e-12
    for draft, accepted in (((0, 1), of_01), ((1, 0), 3 / 2)):
        only_B = (draft == DRAFTS_BG).all(axis=1).astype(float)
        _, lengths_H = output_law(rule, only_B, simple_GV)
        assert np.isclose(lengths_H @ np.arange(H), accepted)
p_rows, q_GV = kept

# %% [markdown]
# ## 3. Three rules that are wrong
#
# Whatever shaped the drafts must have shaped the `q` that the rule is told. Each of these breaks
# that:
#
# - **argmax drafts, told q:** the drafter takes its likeliest token, but the rule divides by `q(x)`
#   as if `x` had been drawn;
# - **sharper drafts:** drafts are sampled at temperature 0.5, and the rule is told the `q` of
#   temperature 1;
# - **best of two:** two drafts are sampled, the one that the target likes better is kept and judged
#   as if it were the only one.

# %%
sharp_GV = q_GV**2 / (q_GV**2).sum(axis=1, keepdims=True)
SHARP_B = sharp_GV[0][DRAFTS_BG[:, 0]] * sharp_GV[1][DRAFTS_BG[:, 1]]

# The target's expected accepted length of each draft, p(x1) + p(x1) p(x2), is the score.
rows_BHV = target_rows(DRAFTS_BG)
numbers = np.arange(len(DRAFTS_BG))
chosen_BG = np.stack([rows_BHV[numbers, g, DRAFTS_BG[:, g]] for g in range(G)], axis=1)
score_B = chosen_BG.cumprod(axis=1).sum(axis=1)
BEST_B = np.zeros(len(DRAFTS_BG))
for first, second in itertools.product(numbers, repeat=2):
    winner = first if score_B[first] >= score_B[second] else second
    BEST_B[winner] += HONEST_B[first] * HONEST_B[second]
assert np.isclose(BEST_B.sum(), 1)

WRONG = {
    "argmax drafts, told q": ARGMAX_B,
    "sharper drafts": SHARP_B,
    "best of two": BEST_B,
}
figure, axes = plt.subplots(1, 3, figsize=(12, 2.8), sharey=True, layout="constrained")
honest_length = EXACT["token"][1] @ np.arange(H)
for axis, (name, weights_B) in zip(axes, WRONG.items(), strict=True):
    law, lengths_H = output_law(token_rule, weights_B)
    length = lengths_H @ np.arange(H)
    print(f"{name:22} accepts {length:.3f} (honest: {honest_length:.3f}); TV {distance(law):.3f}")
    assert np.isclose(law.sum(), 1) and distance(law) > 0.01
    axis.bar(at, (law - target_law()).ravel(), color="tab:red")
    axis.set(xlabel="sequence", title=f"{name}: {distance(law):.3f} from the target")
axes[0].set_ylabel("law - target's law")
assert output_law(token_rule, BEST_B)[1] @ np.arange(H) > honest_length

# %% [markdown]
# Choosing the best of two accepts more, and every token looks plausible: this is why such a rule
# survives. The choice itself is not forbidden. The point-mass rule is exact for *any* draft,
# however it was chosen, as long as the choice does not look at the coins. That is jaxspec's
# `self_selection`:

# %%
law, lengths_H = output_law(point_mass_rule, BEST_B)
assert distance(law) < 1e-12
print(f"best of two as a point mass: accepts {lengths_H @ np.arange(H):.3f}, exact")

# %% [markdown]
# ## 4. Caught by a test
#
# A real vocabulary cannot be listed. What can be done is to draw rounds and to compare the counts
# with the law, by Pearson's chi-square test. A test needs a level at which it speaks: here one
# false alarm in 1e9. It also needs enough rounds; the figure shows how many each error takes.


# %%
@jax.jit
def draw(key, drafts_BG):
    """Accepted length and next token of token verification that is told q."""
    told_BGV = jnp.broadcast_to(q_GV, (len(drafts_BG), G, V))
    rows = [
        jnp.asarray(p_rows[h])[tuple(drafts_BG[:, :h].T)]
        if h
        else jnp.broadcast_to(p_rows[0], (len(drafts_BG), V))
        for h in range(H)
    ]
    return token_law(drafts_BG, told_BGV, jnp.stack(rows, axis=1)).draw(key)


def first_two_tokens(weights_B, rounds, *, seed):
    """What `rounds` rounds emit, continued by the target where they emit one token only."""
    generator = np.random.default_rng(seed)
    drafts_BG = DRAFTS_BG[generator.choice(len(DRAFTS_BG), size=rounds, p=weights_B)]
    verdict = draw(jax.random.key(seed), jnp.asarray(drafts_BG))
    emitted_BH = np.asarray(verdict.emitted_BH(jnp.asarray(drafts_BG)))
    uniform_B1 = generator.random((rounds, 1))
    own_B = (uniform_B1 >= p_rows[1][emitted_BH[:, 0]].cumsum(axis=1)[:, :-1]).sum(axis=1)
    second_B = np.where(emitted_BH[:, 1] < 0, own_B, emitted_BH[:, 1])
    return emitted_BH[:, 0], second_B


LEVEL, ROUNDS = 1e-9, 20_000
expected_VV = target_law().sum(axis=2)
sizes = np.unique(np.geomspace(100, ROUNDS, 12).astype(int))
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
final = {}
for name, weights_B in {"honest": HONEST_B, **WRONG}.items():
    first_B, second_B = first_two_tokens(weights_B, ROUNDS, seed=5)
    values = []
    for size in sizes:
        counts_VV = np.zeros((V, V))
        np.add.at(counts_VV, (first_B[:size], second_B[:size]), 1)
        test = scipy.stats.chisquare(counts_VV.ravel(), expected_VV.ravel() * size)
        values.append(max(float(test.pvalue), 1e-60))
    final[name] = values[-1]
    axis.loglog(sizes, values, marker=".", label=name)
axis.axhline(LEVEL, color="black", ls="--", label="one false alarm in 1e9")
axis.set(xlabel="rounds", title="p-value of the first two tokens", ylim=(1e-61, 3))
axis.legend(fontsize=8)
assert final.pop("honest") > LEVEL
assert max(final.values()) < LEVEL, final

# %% [markdown]
# The honest rule wanders about between 0 and 1, as a p-value should; every wrong one falls without
# end. jaxspec's tests do both for each rule: the enumeration to 1e-12, and this test on the jitted
# path, together with wrong rules that it has to refuse (`tests/verify`). A test of exactness that
# has never refused anything shows nothing.
