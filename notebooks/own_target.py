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
# # Your own target in ten cells
#
# From a text of your own to exact speculative decoding, in about a minute on two CPU cores: train a
# tiny target, train a drafter for it, decode, and look at what was accepted. With a real model,
# leave out the first training and name its folder; the rest stays as it is.
#
# Everything is written to a folder `own_target`, next to where the notebook runs.

# %%
import dataclasses
import json
import random
from pathlib import Path

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
from jaxspec.training.loop import train

folder = Path("own_target")
folder.mkdir(exist_ok=True)
plt.rcParams.update({"figure.dpi": 80, "axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## The text
#
# One row for each question and answer. Put your own rows here; JSONL, Parquet and plain text are
# read too (`jaxspec import-data --help`). These are orders in a shop. The last hundred are kept to
# test.

# %%
generator = random.Random(0)
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
GOODS = ["lamps", "chairs", "tables", "clocks", "mirrors", "shelves", "carpets", "vases"]
COLOURS = ["green", "blue", "white", "yellow", "black", "brown"]


def order():
    name, good, colour = (generator.choice(each) for each in (NAMES, GOODS, COLOURS))
    number, days = generator.randint(2, 9), generator.randint(2, 6)
    question = f"{name} wants {number} {colour} {good} in {days} days."
    answer = (
        f"Thank you, {name}. We have put {number} {colour} {good} aside for you. "
        f"The {good} will be at your door in {days} days. If you do not like the {good}, "
        f"send them back within {2 * days} weeks."
    )
    return {"prompt": question, "response": answer}


rows = list({row["prompt"]: row for row in (order() for _ in range(3000))}.values())
data = folder / "orders.jsonl"
data.write_text("".join(json.dumps(row) + "\n" for row in rows[:-100]))
print(len(rows), "orders, for example:", rows[0]["prompt"], "->", rows[0]["response"])

# %% [markdown]
# ## What both trainings share

# %%
own_text = DataConfig(
    sources=(str(data),),
    data_dir=str(folder / "prepared"),
    sequence_length=128,
    batch_size=8,
    anchors=16,
)


def length(steps, task):
    """Settings of a short training."""
    return TrainingConfig(
        task=task, steps=steps, log_every=steps // 4, checkpoint_every=steps, logging="none"
    )


# %% [markdown]
# ## The target
#
# Three layers and a tokenizer of 512 tokens, both learned from this text.

# %%
shape = TransformerConfig(
    vocab_size=512,
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
    name="shop",
    target=TargetConfig(path="", architecture=shape),
    data=dataclasses.replace(own_text, tokenizer="train", tokenizer_vocab=512, loss_on="all"),
    optimizer=OptimizerConfig(learning_rate=8e-3, warmup_fraction=0.05),
    training=length(120, "target"),
)
row = train(target_run, workdir=folder / "target")
print(f"the target's loss: {row['loss']:.2f} nats a token")

# %% [markdown]
# ## The drafter
#
# One layer that fills a block of 8 in one pass, trained with the loss of *Teaching Diffusion to
# Speculate Left-to-Right* (decay, first-error focal, chain; see [losses.py](losses.py)). For a real
# target, write `TargetConfig(path="/models/...")` here.

# %%
drafter_run = RunConfig(
    name="shop drafter",
    target=TargetConfig(path=str(folder / "target" / "export")),
    drafter=DrafterConfig(block_size=8, num_layers=1, num_features=2, unroll_layers=True),
    loss=LossConfig(decay=4.0, focal=0.3, chain=40.0),
    data=own_text,
    optimizer=OptimizerConfig(learning_rate=8e-3, warmup_fraction=0.05),
    training=length(100, "drafter"),
)
row = train(drafter_run, workdir=folder / "drafter")
print(f"simulated accepted drafts in training: {row['accepted']:.2f} of 7")

# %% [markdown]
# ## Decode
#
# Greedy decoding of orders that neither of them has seen, with the drafter and without. The tokens
# must be the same, all of them: that is what *exact* means. (Such a short training teaches
# the sentences, but not yet the names and numbers. To the drafter it makes no difference: it learns
# what the target says, right or wrong.)

# %%
target = jaxspec.open_target(folder / "target" / "export")
drafter = jaxspec.open_drafter(folder / "drafter", target=target)
questions = [row["prompt"] for row in rows[-100:][:12]]
drafted = [jaxspec.generate(target, each, drafter=drafter, max_new_tokens=96) for each in questions]
alone = [jaxspec.generate(target, each, max_new_tokens=96) for each in questions]
assert [each.tokens for each in drafted] == [each.tokens for each in alone]
print(questions[0], "->", drafted[0].text)

# %% [markdown]
# ## What it gives
#
# tau is the number of tokens per draft-verify round, the target's own token included. Without a
# drafter it is 1.

# %%
tokens = sum(len(each.tokens) - 1 for each in drafted)
rounds = sum(len(each.rounds) for each in drafted)
tau = tokens / rounds
assert all(each.tau == 1.0 for each in alone)
print(f"{tokens} tokens in {rounds} rounds: tau {tau:.2f}")
assert tau > 1.5, "the drafter has learned something"

# %% [markdown]
# ## Where drafts are right
#
# Each line is an answer and each group a round: accepted drafts, then the target's own token. Long
# blue runs are the sentences that every answer shares; the breaks are at names and numbers.

# %%
figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
for line, answer in enumerate(drafted):
    left = 0
    for each in answer.rounds:
        axis.barh(line, len(each.accepted), left=left, color="tab:blue", edgecolor="white", lw=0.5)
        left += len(each.accepted)
        axis.barh(line, len(each.bonus), left=left, color="tab:orange", edgecolor="white", lw=0.5)
        left += len(each.bonus)
axis.set(xlabel="token of the answer", ylabel="answer", title=f"blue: accepted; tau {tau:.2f}")
axis.invert_yaxis()

# %% [markdown]
# ## Sampled, still the target's own law
#
# Above temperature 0 the answer is random, and its law is the target's
# ([exactness.py](exactness.py) checks that). The same seed gives the same answer.

# %%
warm = [
    jaxspec.generate(
        target, questions[0], drafter=drafter, max_new_tokens=96, temperature=1.0, seed=seed
    )
    for seed in (0, 0, 1)
]
assert warm[0].tokens == warm[1].tokens
for each in warm[1:]:
    print(f"tau {each.tau:.2f}: {each.text}")
print(f"mean tau of the three: {np.mean([each.tau for each in warm]):.2f}")

# %% [markdown]
# ## From here
#
# The folder is what the commands write, too: `jaxspec generate --drafter own_target/drafter
# --target.path own_target/target/export` chats with it, `jaxspec export` makes a folder for vLLM or
# SGLang, and `python eval.py` measures it with intervals and wall clock.
