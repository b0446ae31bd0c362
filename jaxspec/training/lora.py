"""Low-rank adaptation: a model learns through small updates of its layers' matrices.

LoRA (Hu et al. 2021, arXiv 2106.09685): W + (alpha / r) A B, with W frozen, A random and B zero.
SpecDiff-2 (arXiv 2511.00606) trains its large drafters this way, with r = 32.

Dimension key: L layers, D inputs and F outputs of a matrix, W rank of its update.

>>> base = {"layers": {"up": {"kernel": jnp.ones((2, 8, 16))}}}
>>> updates = init_updates(jax.random.key(0), base, rank=4)
>>> with_updates(base, updates, scale=2.0)["layers"]["up"]["kernel"].shape
(2, 8, 16)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.losses import LossWeights
from jaxspec.training.objectives import Batch, Metrics, Objective, Terms

ADAPTED = "kernel"
"""Name of the matrices under "layers" that get updates."""
LOW_RANK = ("a", "b")
"""Names of the two factors of an update."""


def init_updates(key: jax.Array, shapes: Any, *, rank: int) -> dict[str, Any]:
    """Updates that change nothing yet.

    Args:
      key: random key.
      shapes: a model's parameters or their shapes, matrices stacked over layers [L, D, O].
      rank: W.

    Returns:
      For each matrix under "layers", by its path: {"a": [L, D, W] normal / sqrt(W),
      "b": [L, W, O] zeros}, float32.

    Raises:
      ValueError: a rank that one of the matrices cannot have, or a model without matrices.
    """
    updates: dict[str, Any] = {}
    for index, (path, leaf) in enumerate(_matrices(shapes)):
        layers, inputs, outputs = leaf.shape
        if not 1 <= rank <= min(inputs, outputs):
            raise ValueError(
                f"denoiser.lora_rank must be from 1 to {min(inputs, outputs)} for {path} "
                f"({inputs} x {outputs}): got {rank}."
            )
        a_LDW = jax.random.normal(jax.random.fold_in(key, index), (layers, inputs, rank))
        b_LWO = jnp.zeros((layers, rank, outputs))
        updates[path] = dict(zip(LOW_RANK, (a_LDW * rank**-0.5, b_LWO), strict=True))
    if not updates:
        raise ValueError("LoRA found no matrices under 'layers' to adapt.")
    return updates


def with_updates(base: Any, updates: dict[str, Any], *, scale: float) -> Any:
    """The base model with its updates added: W + scale A B, in W's dtype."""
    return _updated(base, updates, scale=scale, product=lambda update, leaf: _product(**update))


def merged(base: Any, updates: dict[str, Any], *, scale: float) -> Any:
    """`with_updates` outside of a step: a sharded base gives a model that is sharded as it is.

    Beside the base and the result, there are only the products of one matrix in memory, sharded
    as well.

    Args:
      base: arrays on devices.
      updates: of `init_updates`, after training.
      scale: their factor.
    """

    def product(update: dict[str, Any], leaf: jax.Array) -> jax.Array:
        return jax.jit(_product, out_shardings=leaf.sharding)(**update)

    # Not one compiled function: it could add and multiply in one operation, which rounds otherwise.
    return _updated(base, updates, scale=scale, product=product)


def _updated(
    base: Any,
    updates: dict[str, Any],
    *,
    scale: float,
    product: Callable[[dict[str, Any], jax.Array], jax.Array],
) -> Any:
    known = dict(_matrices(base))
    assert known.keys() == updates.keys(), "updates were made for these parameters"

    def updated(path: Any, leaf: Any) -> Any:
        update = updates.get(_name(path))
        if update is None:
            return leaf
        return (leaf + scale * product(update, leaf)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(updated, base)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("ldw,lwf->ldf", a, b)


@dataclasses.dataclass(frozen=True)
class LowRankObjective:
    """The objective of a model without frozen parts, learned through updates of a frozen base."""

    inner: Objective
    scale: float

    def __call__(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array, weights: LossWeights
    ) -> tuple[Terms, Metrics]:
        """`params` are the updates, `frozen` is the base."""
        return self.inner(with_updates(frozen, params, scale=self.scale), {}, batch, key, weights)

    def counts(self, batch: Batch, key: jax.Array, weights: LossWeights) -> dict[str, jax.Array]:
        """Those of the inner objective."""
        return self.inner.counts(batch, key, weights)

    def total(self, terms: Terms, weights: LossWeights) -> jax.Array:
        """That of the inner objective."""
        return self.inner.total(terms, weights)

    @property
    def runs_own_code(self) -> bool:
        """That of the inner objective."""
        return self.inner.runs_own_code

    def check(self) -> None:
        """That of the inner objective."""
        self.inner.check()


def _matrices(params: Any) -> list[tuple[str, Any]]:
    """The matrices that are adapted, with their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(params.get("layers", {}))[0]
    prefix = (jax.tree_util.DictKey("layers"),)
    return [
        (_name(prefix + path), leaf)
        for path, leaf in leaves
        if _name(path).endswith(ADAPTED) and len(leaf.shape) == 3
    ]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
