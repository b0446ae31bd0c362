"""Drafters that know the target's answers to a few questions by heart, and their exports.

A drafter that was trained is needed to tell how it was trained. Learning a few answers by heart
takes seconds.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.checkpoints.huggingface import save_drafter
from jaxspec.config import DrafterConfig, RunConfig, TargetConfig
from jaxspec.evals.opening import TargetBundle
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.parity.questions import QUESTIONS
from jaxspec.parity.texts import answered
from jaxspec.provenance import provenance
from jaxspec.training.draft_pass import Text, packed, training_pass
from jaxspec.training.draft_record import KEY, reference_record

NEW_TOKENS = 24
SHAPE = DrafterConfig(block_size=4, num_features=2, num_layers=2, target_layer_ids=(1, 2))
LEARNING_RATE = 3e-3


def texts_of(target: TargetBundle, *, block_size: int = SHAPE.block_size) -> list[Text]:
    """The target's answers, and blocks in them."""
    return answered(target, QUESTIONS, new_tokens=NEW_TOKENS, block_size=block_size)


def network(target: TargetBundle, **changes: Any) -> DFlash:
    """A drafter's network."""
    config = resolve_config(
        dataclasses.replace(SHAPE, **changes), target=target.config, mask_token_id=target.mask_id
    )
    return DFlash(config, target.config.hidden_size)


def initial(target: TargetBundle, drafter: DFlash, *, seed: int = 0) -> Any:
    """Random parameters."""
    width = len(drafter.config.target_layer_ids) * target.config.hidden_size
    init = jax.jit(functools.partial(drafter.init, method="initialise"))
    return init(jax.random.key(seed), jnp.zeros((1, 2, width)))["params"]


def by_heart(
    target: TargetBundle, drafter: DFlash, texts: list[Text], *, steps: int, fixed: str = ""
) -> Any:
    """Parameters of a drafter that knows the texts; `fixed` names a part that stays."""
    row, anchors_1N = packed(texts)
    labels_NG = np.full((anchors_1N.size, drafter.config.block_size - 1), -1)
    blocks = [(text, anchor) for text in texts for anchor in text.anchors]
    for labels_G, (text, anchor) in zip(labels_NG, blocks, strict=True):
        following = text.tokens[anchor + 1 :][: len(labels_G)]
        labels_G[: len(following)] = following

    def loss(params: Any) -> jax.Array:
        _, logits_NGV = training_pass(
            params, target.params, row, anchors_1N, target=target.model, drafter=drafter
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_NGV, labels_NG)
        return jnp.mean(losses, where=labels_NG >= 0)

    transform = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params)
        if fixed:
            gradient = {**gradient, fixed: jax.tree.map(jnp.zeros_like, gradient[fixed])}
        updates, state = transform.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = initial(target, drafter)
    state = transform.init(params)
    for _ in range(steps):
        params, state, value = step(params, state)
    print(float(value))
    return params


def export(folder: Path, target: TargetBundle, path: str, drafter: DFlash, params: Any) -> Path:
    """A run's folder, as training leaves it."""
    config = RunConfig(target=TargetConfig(path=path), drafter=drafter.config)
    record = reference_record(
        params, target.params, target=target.model, drafter=drafter, tokenizer=target.tokenizer
    )
    save_drafter(
        folder / "export",
        drafter.config,
        params,
        target_config=target.config,
        tokenizer_folder=target.tokenizer.folder,
        provenance={**provenance(config=config, seed=0), KEY: record},
    )
    return folder
