"""Drafters that know the target's answers to a few questions by heart, and their exports.

Only of a drafter that has learned something can be told how it was trained, and a few answers are
learned by heart in seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxspec.checkpoints.huggingface import save_drafter
from jaxspec.config import DrafterConfig, LossConfig, RunConfig, TargetConfig
from jaxspec.evals.opening import TargetBundle
from jaxspec.models.dflash import DFlash, resolve_config, served_features
from jaxspec.parity import questions
from jaxspec.parity.texts import answered
from jaxspec.provenance import provenance
from jaxspec.training.draft_pass import Text, packed, training_pass
from jaxspec.training.draft_record import KEY, reference_record
from jaxspec.training.objectives import DrafterObjective

QUESTIONS = questions.QUESTIONS[:4]
"""Each text makes a step of the training dearer."""
NEW_TOKENS = 24
SHAPE = DrafterConfig(block_size=6, num_layers=2, num_features=2)
_LEARNING_RATE, _STEPS = 5e-3, 40

Fault = Callable[[Callable[..., Any], Any, Any, nn.module.InterceptorContext], Any]
"""Replaces a method of a module: (method, args, kwargs, context) -> its result."""


def mask_in_slot_0(mask_id: int) -> Fault:
    """Embeds blocks [B, N, K] as [mask, mask, ...]."""

    def fault(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "embed_tokens":
            return method(jnp.full_like(args[0], mask_id))
        return method(*args, **kwargs)

    return fault


def without_context_norm(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Leaves `hidden_norm` out."""
    is_skipped = context.module.name == "hidden_norm" and context.method_name == "__call__"
    return args[0] if is_skipped else method(*args, **kwargs)


def faulty_pass(fault: Fault | None) -> Callable[..., Any]:
    """The training pass with a fault; its programs are not shared with the sound one."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if fault is None:
            return training_pass.__wrapped__(*args, **kwargs)
        with nn.intercept_methods(fault):
            return training_pass.__wrapped__(*args, **kwargs)

    return jax.jit(run, static_argnames=("target", "drafter"))


def network(target: TargetBundle, **changes: Any) -> DFlash:
    """A drafter's network."""
    config = resolve_config(
        dataclasses.replace(SHAPE, **changes),
        target=target.config,
        mask_token_id=target.mask_id if target.mask_id is not None else 0,
    )
    return DFlash(config, target.config.hidden_size)


def initial(target: TargetBundle, drafter: DFlash) -> Any:
    """Random parameters."""
    width = len(drafter.config.target_layer_ids) * target.config.hidden_size
    init = jax.jit(functools.partial(drafter.init, method="initialise"))
    return init(jax.random.key(0), jnp.zeros((1, 2, width)))["params"]


@functools.cache
def _answers(target: TargetBundle, block_size: int) -> list[Text]:
    return answered(target, QUESTIONS, new_tokens=NEW_TOKENS, block_size=block_size)


def _features(
    target: TargetBundle, row: dict[str, np.ndarray], layer_ids: tuple[int, ...]
) -> jax.Array:
    """What a drafter sees of a packed row, [1, S, E]."""

    @jax.jit
    def seen(params: Any) -> jax.Array:
        output = target.model.apply(
            {"params": params},
            row["tokens"],
            positions_BS=row["positions"],
            segments_BS=row["segments"],
            capture=layer_ids,
        )
        return served_features(target.model, params, output.features_BSE, layer_ids=layer_ids)

    return seen(target.params)


def by_heart(target: TargetBundle, drafter: DFlash, *, fault: Fault | None = None) -> Any:
    """Parameters of a drafter that has learned the target's answers, with a fault in training."""
    block_size = drafter.config.block_size
    texts = _answers(target, block_size)
    row, anchors_1N = packed(texts)
    labels_NG = np.full((anchors_1N.size, block_size - 1), -1)
    blocks = [(text, anchor) for text in texts for anchor in text.anchors]
    for labels_G, (text, anchor) in zip(labels_NG, blocks, strict=True):
        following = text.tokens[anchor + 1 :][: len(labels_G)]
        labels_G[: len(following)] = following
    # The target's features stay the same: they are computed once.
    features_1SE = _features(target, row, drafter.config.target_layer_ids)
    objective = DrafterObjective(
        target=target.model, drafter=drafter, loss=LossConfig(), anchors=anchors_1N.size
    )

    def loss(params: Any) -> jax.Array:
        with nn.intercept_methods(fault) if fault else contextlib.nullcontext():
            hidden_1NGD = objective.hidden(params, target.params, row, anchors_1N, features_1SE)
        logits_1NGV = target.model.apply({"params": target.params}, hidden_1NGD, method="logits")
        losses_NG = optax.softmax_cross_entropy_with_integer_labels(logits_1NGV[0], labels_NG)
        return jnp.mean(losses_NG, where=labels_NG >= 0)

    transform = optax.adam(_LEARNING_RATE)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = transform.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = initial(target, drafter)
    state = transform.init(params)
    for _ in range(_STEPS):
        params, state, value = step(params, state)
    assert float(value) < 0.1, f"the texts were not learned: {value}"
    return params


def export(
    folder: Path,
    target: TargetBundle,
    path: str,
    drafter: DFlash,
    params: Any,
    *,
    dtype: Any = None,
) -> Path:
    """A run's folder, as training leaves it."""
    config = RunConfig(target=TargetConfig(path=path), drafter=drafter.config)
    record = reference_record(
        params,
        target.params,
        target=target.model,
        drafter=drafter,
        tokenizer=target.tokenizer,
    )
    save_drafter(
        folder / "export",
        drafter.config,
        params,
        target_config=target.config,
        tokenizer_folder=target.tokenizer.folder,
        dtype=dtype,
        provenance={**provenance(config=config, seed=0), KEY: record},
    )
    return folder
