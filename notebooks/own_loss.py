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
# # Your own loss
#
# A loss term is a function of a few numbers per slot. This notebook adds one without touching the
# package, as [docs/how_to_add.md](../docs/how_to_add.md#a-loss-term) says: write the function into
# a file, name the file in the configuration, train, and compare. Target and drafters are tiny and
# trained for seconds, so the comparison shows how it is done and not which loss is best.
#
# The term: **the first slot counts extra.** Nothing of a block is accepted if its first slot is
# wrong. So we add the cross-entropy of that slot alone.

# %%
import dataclasses
import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxspec
from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)
from jaxspec.losses import SlotStatistics, loss_terms, positional_weights, total_from_terms
from jaxspec.training.loop import train

folder = Path("own_loss")
folder.mkdir(exist_ok=True)
plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## 1. Write it
#
# A term returns a numerator and a denominator, never their quotient, so that devices can add them
# up before they divide. `weighted_terms` makes both from a value per slot, weights and the mask.
# Here the weights are 1 in the first slot and 0 elsewhere; `normalize="block"` makes the
# denominator the number of blocks. That number follows from the masks alone, which `Term` can say:
# gradient accumulation is then exact.

# %%
file = folder / "my_terms.py"
file.write_text(
    '''"""A term of one's own: the first slot counts extra."""

import jax.numpy as jnp

from jaxspec.losses import Term, weighted_terms


def _first_slot(slots, *, mask_NG, weights_G):
    only_first_G = jnp.zeros_like(weights_G).at[0].set(1.0)
    return weighted_terms(
        -slots.log_p_NG, weights_G=only_first_G, mask_NG=mask_NG, normalize="block"
    )


first_slot = Term(_first_slot, counts_follow_predictions=False)
'''
)
UNIFORM = LossConfig(decay=None, focal=0.0, chain=0.0)
WITH_TERM = LossConfig(decay=None, focal=0.0, chain=0.0, extra=(f"{file}:first_slot=4",))
print(UNIFORM.label, "|", WITH_TERM.label, "|", LossConfig().label)

# %% [markdown]
# ## 2. Look at it before you train
#
# Two blocks of 7 slots, and the gradient with respect to `log p`. By hand: cross-entropy pulls with
# 1/2 at every slot (a mean over two blocks), and the term adds 4/2 at the first.

# %%
log_p = jnp.log(jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (2, 7)), jnp.float32))


def pull(config):
    def loss(log_p):
        slots = SlotStatistics(log_p_NG=log_p, correct_NG=log_p > jnp.log(0.5))
        return total_from_terms(loss_terms(slots, config=config), config=config)

    return -jax.jit(jax.grad(loss))(log_p)


np.testing.assert_allclose(pull(UNIFORM), np.full((2, 7), 0.5), rtol=1e-5)
np.testing.assert_allclose(pull(WITH_TERM), np.tile([2.5] + 6 * [0.5], (2, 1)), rtol=1e-5)

# Cross-entropy with positional weights does something similar, but smoothly.
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
slots = np.arange(1, 8)
for name, config in {"uniform": UNIFORM, "+ first_slot=4": WITH_TERM}.items():
    axis.plot(slots, 2 * pull(config)[0], marker="o", label=name)
axis.plot(slots, positional_weights(7, decay=4.0), ls="--", label="decay 4")
axis.set(xlabel="slot", title="pull on log p, per block", ylim=(0, None))
axis.legend(fontsize=8)

# %% [markdown]
# ## 3. Train with it
#
# First a target to draft for, as [own_target.py](own_target.py) explains. Then three runs of the
# same drafter: same seed, same data, same steps.

# %%
generator = random.Random(0)
GOODS = ["lamps", "chairs", "tables", "clocks", "mirrors", "shelves", "carpets", "vases"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def order(number):
    good, day = generator.choice(GOODS), generator.choice(DAYS)
    return {
        "prompt": f"Order {number}: {good} for {day}.",
        "response": f"We send you the {good} on {day}. Will you be at home on {day}? If not, we "
        f"leave the {good} with your neighbour, and you can take them from there on the next day.",
    }


rows = [order(number) for number in range(2000)]
(folder / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-20]))
DATA = DataConfig(
    sources=(str(folder / "orders.jsonl"),),
    data_dir=str(folder / "prepared"),
    sequence_length=96,
    batch_size=8,
    anchors=12,
)
OPTIMIZER = OptimizerConfig(learning_rate=8e-3, warmup_fraction=0.05)
SHAPE = TransformerConfig(
    vocab_size=384,
    hidden_size=64,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    intermediate_size=160,
    max_position_embeddings=256,
    unroll_layers=True,
)
target_run = RunConfig(
    target=TargetConfig(path="", architecture=SHAPE),
    data=dataclasses.replace(DATA, tokenizer="train", tokenizer_vocab=384, loss_on="all"),
    optimizer=OPTIMIZER,
    training=TrainingConfig(
        task="target", steps=100, log_every=50, checkpoint_every=100, logging="none"
    ),
)
train(target_run, workdir=folder / "target")

# %%
FULL = LossConfig(decay=4.0, focal=0.3, chain=40.0)
RUNS = {"uniform": UNIFORM, "uniform + first slot": WITH_TERM, "full": FULL}


def run_of(loss):
    return RunConfig(
        target=TargetConfig(path=str(folder / "target" / "export")),
        drafter=DrafterConfig(block_size=8, num_features=2, num_layers=1, unroll_layers=True),
        loss=loss,
        data=DATA,
        optimizer=OPTIMIZER,
        training=TrainingConfig(steps=60, log_every=5, checkpoint_every=60, logging="none"),
    )


for name, loss in RUNS.items():
    train(run_of(loss), workdir=folder / name.replace(" ", "_"))

# %% [markdown]
# ## 4. Compare
#
# `metrics.jsonl` has one object for each logged step. The term has a column of its own,
# `extra/first_slot`, without its weight. What is logged does not depend on the loss, so the other
# columns can be compared between runs; the `loss` itself cannot.

# %%
METRICS = {
    name: [
        json.loads(line)
        for line in (folder / name.replace(" ", "_") / "metrics.jsonl").read_text().splitlines()
    ]
    for name in RUNS
}
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
for name, lines in METRICS.items():
    step = [line["step"] for line in lines]
    axes[0].plot(step, [line["accepted"] for line in lines], marker=".", label=name)
    axes[1].plot(step, [line["accept_at"][0] for line in lines], marker=".")
    # None, here nan, where no block reached the slot.
    last = np.nanmean(np.array([line["accept_at"] for line in lines[-4:]], float), axis=0)
    axes[2].plot(slots, last, marker="o")
axes[0].set(xlabel="step", title="simulated accepted drafts")
axes[1].set(xlabel="step", title="acceptance of the first slot")
axes[2].set(xlabel="slot", title="conditional acceptance at the end")
axes[0].legend(fontsize=8)
assert all("extra/first_slot" in row for row in METRICS["uniform + first slot"])
assert not any("extra/first_slot" in row for row in METRICS["uniform"])


def mean_of_last(name, value):
    return float(np.mean([value(row) for row in METRICS[name][-4:]]))


first = {name: mean_of_last(name, lambda row: row["accept_at"][0]) for name in RUNS}
accepted = {name: mean_of_last(name, lambda row: row["accepted"]) for name in RUNS}
for name in RUNS:
    print(f"{name:22} first slot {first[name]:.2f}, accepted {accepted[name]:.2f}")
assert min(accepted.values()) > 1.5
assert first["uniform + first slot"] > first["uniform"] - 0.03

# %% [markdown]
# ## 5. Decode
#
# What counts is exact decoding. The outputs of all three are the target's own; only the number of
# rounds differs.

# %%
target = jaxspec.open_target(folder / "target" / "export")
QUESTIONS = [row["prompt"] for row in rows[-8:]]
answers = {}
for name in RUNS:
    drafter = jaxspec.open_drafter(folder / name.replace(" ", "_"), target=target)
    answers[name] = [
        jaxspec.generate(target, question, drafter=drafter, max_new_tokens=80)
        for question in QUESTIONS
    ]
assert len({tuple(each.tokens for each in found) for found in answers.values()}) == 1
for name, found in answers.items():
    tokens = sum(len(each.tokens) - 1 for each in found)
    rounds = sum(len(each.rounds) for each in found)
    print(f"{name:22} tau {tokens / rounds:.2f} ({rounds} rounds)")

# %% [markdown]
# One seed, a few seconds of training and eight prompts decide nothing: the order of the three may
# differ between the two tables above. For a result, train longer, use several seeds and all
# prompts, and tune the learning rate for each loss. From the command line the term is an option:
#
# ```
# python train.py --config configs/quickstart.py --workdir runs/first_slot \
#     --loss.extra my_terms.py:first_slot=4
# ```
#
# provenance.json records where the function came from. A term that compares distributions with the
# target's sets `needs_target_rows=True` and finds them in `slots.overlap_NG` and `slots.kl_NG`.
