"""One token per pass: the baseline of every speed-up, and the reference for exactness.

Dimension key: B batch rows, H rows of a pass, S tokens of a prompt, V vocabulary.

>>> rules = DecodeRules(max_new_tokens=64, stop_ids=(2,))
>>> strategy = Autoregressive(model, rules)  # doctest: +SKIP
>>> state = strategy.start(params, prompts, capacity=192)  # doctest: +SKIP
>>> state = strategy.run(params, state)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.decoding.layout import cut_layers, stack_layers
from jaxspec.decoding.state import (
    NO_LIMIT,
    DecodeRules,
    DecodeState,
    Prompts,
    emit,
    first_state,
    loop,
    prefill,
    stream_keys,
)
from jaxspec.models.registry import LanguageModel
from jaxspec.ops.precision import exact_program
from jaxspec.ops.sampling import GREEDY, INVALID, Sampling, largest_index
from jaxspec.ops.suppression import suppress


def choose(
    logits_BV: jax.Array, keys_B: jax.Array, *, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """A token for each row, and whether the row failed (nothing to sample from: NaN)."""
    if sampling.greedy:
        tokens_B = largest_index(logits_BV)
        return tokens_B, tokens_B == INVALID
    probs_BV = sampling.probabilities(logits_BV)
    tokens_B = jax.vmap(sampling.sample)(keys_B, probs_BV)
    return tokens_B, tokens_B == INVALID


@dataclasses.dataclass(frozen=True)
class Autoregressive:
    """Plain decoding with the target. Parameters: the target's own tree."""

    model: LanguageModel
    rules: DecodeRules
    sampling: Sampling = GREEDY
    pass_rows: int = 1
    """Tokens that a pass reads: the newest one, and padding that changes nothing but the shape. A
    pass of as many rows as verification reads rounds as verification does."""

    @property
    def round_tokens(self) -> int:
        """The rows of a pass; a round emits one token."""
        return self.pass_rows

    def prepare(self, params: Any) -> Any:
        """Parameters in the layout that the loop wants, for callers that `run` more than once."""
        return cut_layers(params, unrolled=self.model.config.unroll_layers, now=True)

    @exact_program(static_argnames=("capacity",))
    def start(self, params: Any, prompts: Prompts, *, capacity: int) -> DecodeState:
        """Prefills, and emits the first token."""
        params = stack_layers(params)
        cache, hidden_BD, _ = prefill(self.model, params, prompts, capacity=capacity, capture=())
        logits_BV = self.model.apply({"params": params}, hidden_BD, method="logits")
        logits_BV = suppress(logits_BV, self.rules.suppressed_ids)
        (first_keys_B,) = stream_keys(prompts.keys_B, jnp.zeros_like(prompts.lengths_B), "token")
        return first_state(
            cache,
            None,
            *choose(logits_BV, first_keys_B, sampling=self.sampling),
            prompts,
            rules=self.rules,
            round_tokens=self.round_tokens,
        )

    @exact_program(donate_argnames=("state",))
    def run(
        self,
        params: Any,
        state: DecodeState,
        *,
        leave_on_end: jax.Array | bool = False,
        max_rounds: jax.Array | int = NO_LIMIT,
    ) -> DecodeState:
        """Decodes to the end (see `jaxspec.decoding.state.loop`) without the host."""
        pieces = cut_layers(params, unrolled=self.model.config.unroll_layers)

        def step(state: DecodeState) -> DecodeState:
            variables = {"params": stack_layers(pieces)}
            rows_BH = jnp.pad(state.anchor_B[:, None], ((0, 0), (0, self.pass_rows - 1)))
            output = self.model.apply(variables, rows_BH, cache=state.cache)
            logits_BV = self.model.apply(variables, output.hidden_BSD[:, 0], method="logits")
            logits_BV = suppress(logits_BV, self.rules.suppressed_ids)
            (step_keys_B,) = stream_keys(state.keys_B, state.rounds_B + 1, "token")
            next_B, failed_B = choose(logits_BV, step_keys_B, sampling=self.sampling)
            cache = state.cache.write_after(
                output.keys_LBRSC, output.values_LBRSC, failed_B=failed_B
            )
            state, emitted_B = emit(
                state, next_B[:, None], jnp.ones_like(next_B), failed_B, rules=self.rules
            )
            return dataclasses.replace(state, cache=cache.advance(emitted_B))

        return loop(step, state, leave_on_end=leave_on_end, max_rounds=max_rounds)
