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
# # From a trace to tau: every definition on one trace
#
# "Accepted length" is the one number that everybody reports and everybody defines differently. One
# checkpoint can score 4.1 under one script and 5.0 under another without a single token being
# different. The definitions disagree in three things: whether rounds or responses are averaged,
# whether the target's own token counts, and what is done with tokens that a stop token or the
# length limit cut off. This notebook computes all of them from the same rounds by hand, and
# compares the results with [jaxspec.evals.tau](../jaxspec/evals/tau.py), which says where it read
# each one.

# %%
import matplotlib.pyplot as plt
import numpy as np

import jaxspec
from jaxspec.evals.tau import DEFINITIONS, Rounds, definitions, summarise

plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## 1. Three responses
#
# A round drafts `G = 7` tokens (a block of 8 without its anchor). The target accepts the first `v`
# of them and adds one token of its own: a *correction* after a rejection, or a *bonus* after a full
# block. So a round usually emits `v + 1` tokens. The last round of a response may emit fewer:
#
# - "question" ends with a stop token that stands inside the accepted drafts;
# - "story" repeats itself, so it is drafted well, and is cut by the length limit;
# - "proof" is hard to draft, and ends with a stop token of the target's own.
#
# The first token of a response comes from the prefill and belongs to no round.

# %%
G = 7
TRACE = {
    "question": Rounds(emitted=(4, 6, 3), accepted=(3, 5, 3), verified=(3, 5, 5), stopped=True),
    "story": Rounds(emitted=(8, 8, 8, 8, 5), accepted=(7, 7, 7, 7, 5), verified=(7, 7, 7, 7, 7)),
    "proof": Rounds(emitted=(1, 2, 1, 3, 1, 1, 2, 1), stopped=True),
}

KINDS = {"accepted draft": "tab:blue", "target's own token": "tab:orange", "cut off": "lightgray"}
figure, axes = plt.subplots(3, 1, figsize=(9, 3.6), sharex=True, layout="constrained")
for axis, (name, response) in zip(axes, TRACE.items(), strict=True):
    left = 0
    for emitted, verified in zip(response.emitted, response.verified_counts, strict=True):
        for place in range(verified + 1):
            kind = "accepted draft" if place < verified else "target's own token"
            kind = kind if place < emitted else "cut off"
            axis.barh(0, 0.9, left=left + place, color=KINDS[kind])
        left += verified + 1
        axis.axvline(left - 0.05, color="black", lw=1)
    axis.set(yticks=[], title=f"{name}: {len(response.emitted)} rounds")
    axis.grid(visible=False)
for kind, color in KINDS.items():
    axes[0].bar(0, 0, color=color, label=kind)
axes[0].legend(loc="upper right", fontsize=8)
axes[-1].set_xlabel("tokens in order; a line ends each round")

# %% [markdown]
# ## 2. Every definition, by hand
#
# Of a round: `e` tokens and `a` drafts that are in the response, and `v` drafts that verification
# accepted before anything was cut. `micro` divides sums over all rounds. `macro` takes the mean of
# each response first, so that every response counts the same.

# %%
e = [response.emitted for response in TRACE.values()]
a = [response.accepted_counts for response in TRACE.values()]
v = [response.verified_counts for response in TRACE.values()]


def micro(counts):
    return sum(map(sum, counts)) / sum(map(len, counts))


def macro(counts):
    return sum(sum(rounds) / len(rounds) for rounds in counts) / len(counts)


uncut = [[count + 1 for count in rounds] for rounds in v]
# DeepSpec cuts at a stop token, but not at the limit.
cut_at_stop = [
    emitted if response.stopped else rounds
    for response, emitted, rounds in zip(TRACE.values(), e, uncut, strict=True)
]
by_hand = {
    "micro": micro(e),
    "micro_without_bonus": micro(a),
    "macro": macro(e),
    "macro_without_bonus": macro(a),
    "z_lab": macro(uncut),
    "vllm": micro(uncut),
    "deepspec": micro(cut_at_stop),
    "vllm_draft_acceptance_rate": micro(v) / G,
}
library = definitions(list(TRACE.values()), num_slots=G)
assert by_hand.keys() == library.keys() == DEFINITIONS.keys()
for name, value in by_hand.items():
    assert np.isclose(value, library[name]), name
    print(f"{value:5.2f}  {DEFINITIONS[name]}")

# %%
lengths = {name: value for name, value in by_hand.items() if name != "vllm_draft_acceptance_rate"}
order = sorted(lengths, key=lengths.get)
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
bars = axis.barh(order, [lengths[name] for name in order])
axis.bar_label(bars, fmt="%.2f", padding=3)
axis.set(title="accepted length of the same 16 rounds", xlim=(0, 6))
axis.grid(visible=False, axis="y")

low, high = lengths[order[0]], lengths[order[-1]]
print(f"from {low:.2f} to {high:.2f}: a factor of {high / low:.1f}")
assert order[0] == "micro_without_bonus" and order[-1] == "z_lab"
assert high / low > 1.6

# %% [markdown]
# Three things make the difference:
#
# - **Rounds or responses.** The story takes 5 of 16 rounds but is one of 3 responses: `macro` gives
#   it more weight than `micro` does. Where easy responses are long in tokens and short in rounds,
#   macro is the larger.
# - **The bonus.** With it, a drafter that is always wrong scores 1, not 0. Without it, a round that
#   is cut inside its drafts has no token of the target to leave out, so the difference is a bit
#   less than 1.
# - **The cut.** What was accepted after a stop token was verified but is in no response. Counting
#   it makes short responses look better.

# %%
assert by_hand["macro"] > by_hand["micro"]
rounds_cut = sum(
    emitted == accepted
    for response in TRACE.values()
    for emitted, accepted in zip(response.emitted, response.accepted_counts, strict=True)
)
rounds = sum(len(response.emitted) for response in TRACE.values())
difference = by_hand["micro"] - by_hand["micro_without_bonus"]
assert np.isclose(difference, 1 - rounds_cut / rounds)
print(f"{rounds_cut} of {rounds} rounds were cut: the bonus is worth {difference:.3f}, not 1")
assert by_hand["micro"] < by_hand["deepspec"] < by_hand["vllm"]

# %% [markdown]
# Which one should you look at? The wall clock pays for rounds, so tokens per round over all rounds,
# `micro`, is what a speed-up follows from: jaxspec's tables call it tau. `macro` describes the
# typical response. The others are in every result file (`tau_definitions`), so that a number from
# elsewhere can be compared with its own kind.

# %% [markdown]
# ## 3. The same from real decoding
#
# The target that ships in the package answers six questions, with prompt look-up as the drafter: it
# proposes what followed the same words earlier in the text.

# %%
QUESTIONS = (
    "What is 12 + 30?",
    "I want to cook bean stew. What do I have to buy?",
    "Tom has 3 apples and buys 4 more. How many apples does Tom have now?",
    "Write a function that adds two numbers.",
    "Write a function that returns the largest number of a list.",
    "Hello! How are you?",
)
target = jaxspec.open_target("embedded")
drafter = jaxspec.open_drafter("ngram", target=target)
answers = [
    jaxspec.generate(target, question, drafter=drafter, max_new_tokens=64) for question in QUESTIONS
]
measured = [
    Rounds(
        emitted=tuple(len(each.emitted) for each in answer.rounds),
        accepted=tuple(len(each.accepted) for each in answer.rounds),
        verified=tuple(each.verified for each in answer.rounds),
        tokens=answer.tokens,
        stopped=answer.stopped,
    )
    for answer in answers
    if answer.rounds
]
summary = summarise(measured, num_slots=drafter.block_size - 1)
assert np.isclose(summary.tau_micro, summary.tau_definitions["micro"])
for response, answer in zip(measured, (each for each in answers if each.rounds), strict=True):
    assert np.isclose(sum(response.emitted) / len(response.emitted), answer.tau)
print(f"{summary.rounds} rounds, {summary.tokens} tokens: tau {summary.tau_micro:.2f}")
for name, value in summary.tau_definitions.items():
    print(f"{value:5.2f}  {name}")

# %% [markdown]
# Two more figures belong to every tau. The **interval** resamples prompts, not rounds: rounds of
# one response depend on each other, so a thousand rounds of six prompts are six observations. The
# **conditional acceptance** says where drafts fail: how often slot `g` is accepted among the rounds
# that accepted all slots before it. It rests on fewer and fewer rounds along the block.

# %%
at = np.array([np.nan if value is None else value for value in summary.accept_at])
place = np.arange(1, len(at) + 1)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(place, at, marker="o")
axes[0].set(xlabel="slot", ylim=(0, 1.02), title="accepted, given that the slots before were")
axes[1].bar(place, summary.reached_at)
axes[1].set(xlabel="slot", title="rounds that reached the slot")
assert all(np.diff(summary.reached_at) <= 0)

# The tokens of the rounds, put together from these two: accepted drafts, and one more if not cut.
accepted = sum(
    reached * (share or 0)
    for reached, share in zip(summary.reached_at, summary.accept_at, strict=True)
)
assert np.isclose(accepted / summary.rounds, summary.accepted_per_round)
print(f"tau {summary.tau_micro:.2f}, 95% interval over prompts: {summary.tau_ci95}")

# %% [markdown]
# ## 4. One more trap: answers that loop
#
# A weak target repeats itself, and repetition is easy to draft. A response in which at least half
# of the 4-grams stood before counts as repetitive, and tau is reported with and without those.

# %%
loop = Rounds(emitted=(8,) * 8, tokens=(5, 6, 7, 8) * 16)
proof = Rounds(emitted=(1, 2, 1, 3, 1, 1, 2, 1), tokens=tuple(range(13)))
mixed = summarise([loop, proof], num_slots=G)
print(f"with the loop: {mixed.tau_micro:.2f}; without: {mixed.tau_micro_without_repetitive:.2f}")
assert mixed.repetitive_share == 0.5
assert mixed.tau_micro == 76 / 16 and mixed.tau_micro_without_repetitive == 12 / 8
