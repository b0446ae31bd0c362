"""One training step: loss, gradient, clip, AdamW, metrics; the same body on every parallel path.

>>> step = spread(make_body(objective, transform), mesh=mesh, path="jit")       # doctest: +SKIP
>>> hyper = Hyper(learning_rate, key, weights)                                # doctest: +SKIP
>>> state, metrics = step(state, frozen, batch, hyper)                        # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxspec.losses import LossWeights
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.parallel.step import Body, Reduce
from jaxspec.training.objectives import Batch, Metrics, Objective, same_for_equal
from jaxspec.training.state import TrainState


@array_dataclass
class Hyper:
    """What differs between steps or between runs, and so is not a constant in the program."""

    learning_rate: jax.Array
    key: jax.Array
    """The run's random key; each step folds in its number, each row its own."""
    weights: LossWeights


@same_for_equal
def make_body(
    objective: Objective,
    transform: optax.GradientTransformation,
    *,
    gradient_accumulation: int = 1,
) -> Body:
    """The body that `jaxspec.parallel.step.spread` compiles.

    Each term of the loss is divided by its count over all devices. With gradient accumulation the
    batch is cut into that many parts of whole rows, which are read one after the other. A term
    whose count follows from the masks alone (`Objective.counts`) is divided by its count over all
    parts: parts with few learned tokens then weigh little, and the step is that of the whole batch.
    A term whose count follows from what is predicted (the first-error focal) is the mean of the
    parts' ratios.

    A step whose loss, gradient or result is not finite changes only `step` and `bad_step`.
    """

    def part(
        state: TrainState,
        frozen: Any,
        batch: Batch,
        hyper: Hyper,
        whole_counts: dict[str, jax.Array],
        reduce: Reduce,
        vary: Reduce,
    ) -> tuple[jax.Array, Any, Metrics]:
        key = jax.random.fold_in(hyper.key, state.step)

        def local_loss(local_params: Any) -> tuple[jax.Array, Metrics]:
            terms, metrics = objective(local_params, frozen, batch, key, hyper.weights)
            own = {name: count for name, (_, count) in terms.items() if name not in whole_counts}
            counts = {name: count * gradient_accumulation for name, count in reduce(own).items()}
            counts |= whole_counts
            shares = {name: (numerator, counts[name]) for name, (numerator, _) in terms.items()}
            return objective.total(shares, hyper.weights), metrics

        differentiate = jax.value_and_grad(local_loss, has_aux=True)
        (value, metrics), gradients = differentiate(vary(state.params))
        return reduce(value), reduce(gradients), reduce(metrics)

    def body(
        state: TrainState, frozen: Any, batch: Batch, hyper: Hyper, *, reduce: Reduce, vary: Reduce
    ) -> tuple[TrainState, Metrics]:
        if gradient_accumulation == 1:
            value, gradients, metrics = part(state, frozen, batch, hyper, {}, reduce, vary)
        else:
            key = jax.random.fold_in(hyper.key, state.step)
            whole_counts = reduce(objective.counts(batch, key, hyper.weights))
            parts = jax.tree.map(
                # Strided, so that each part holds rows of every device.
                lambda x: x.reshape(-1, gradient_accumulation, *x.shape[1:]).swapaxes(0, 1),
                batch,
            )

            def accumulate(total: Any, rows: Batch) -> tuple[Any, None]:
                new = part(state, frozen, rows, hyper, whole_counts, reduce, vary)
                return jax.tree.map(jnp.add, total, new), None

            shapes = jax.eval_shape(
                lambda rows: part(state, frozen, rows, hyper, whole_counts, reduce, vary),
                jax.tree.map(lambda x: x[0], parts),
            )
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (value, gradients, metrics), _ = jax.lax.scan(accumulate, zeros, parts)

        norm = optax.tree.norm(gradients)
        updates, opt_state = transform.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(
            lambda p, u: (p - hyper.learning_rate * u).astype(p.dtype), state.params, updates
        )
        # The result is checked too: a learning rate beyond float32 turns good gradients into
        # infinite weights, which would be saved before the next step's loss showed them.
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        finite &= jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
        kept = finite & (state.bad_step < 0)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            bad_step=jnp.where(finite | (state.bad_step >= 0), state.bad_step, state.step),
        )
        one = jnp.ones((), jnp.float32)
        return new_state, {**metrics, "loss": (value, one), "gradient_norm": (norm, one)}

    return body
