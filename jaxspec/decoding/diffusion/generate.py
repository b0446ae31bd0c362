"""Decoding a list of prompts with a diffusion language model.

Prompts of similar length share a batch: when a row ends, the next prompt takes its place, as in
`jaxspec.decoding.generate`. All rows start a block at the same time, each its own block, so a row
is refilled between two blocks. Shapes are few (`bucket_length`), so few programs are compiled. The
answer to a prompt and its counted passes depend neither on its neighbours nor on the batch size.

>>> responses = generate_diffusion(  # doctest: +SKIP
...     decoder, params, prompts, ids=names, batch_size=8, seed=0)
>>> responses[0].tokens, responses[0].num_passes  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxspec.decoding.diffusion.decoder import BlockDiffusion, DiffusionState
from jaxspec.decoding.generate import (
    bucket_length,
    check_prompt_ids,
    groups,
    pad_prompts,
    prefill_batches,
    prefill_rows,
    serve,
)
from jaxspec.decoding.placement import on_mesh_of


@dataclasses.dataclass(frozen=True)
class DiffusionResponse:
    """The answer to one prompt."""

    prompt_id: str
    tokens: tuple[int, ...]
    """Up to the first stop token, which is included, or the whole length."""
    stopped: bool
    """Whether a stop token ended it."""
    passes: tuple[int, ...]
    """Forward passes of the model (NFE) in each block that was filled."""
    steps: tuple[int, ...]
    """Steps that each block took: as many as passes, unless drafted states saved some."""
    filled: int
    """Tokens that were revealed, those after the stop token included: what the passes made."""

    @property
    def num_passes(self) -> int:
        """Forward passes for the whole response."""
        return sum(self.passes)


def check_diffusion_prompts(
    prompts: Sequence[Sequence[int]], *, ids: Sequence[str], decoder: BlockDiffusion
) -> None:
    """Refuses prompts that the loops would silently get wrong.

    Raises:
      ValueError: no prompts, an empty one, ids outside the embedding, the mask in a prompt, or a
        prompt that is too long for the model's positions.
    """
    config, rules = decoder.model.config, decoder.rules
    check_prompt_ids(prompts, ids=ids, vocab_size=config.vocab_size)
    for name, prompt in zip(ids, prompts, strict=True):
        if rules.mask_id in prompt:
            raise ValueError(
                f"Prompt {name!r} holds the mask ({rules.mask_id}): only the response is filled."
            )
        if len(prompt) + rules.response_length > config.max_position_embeddings:
            raise ValueError(
                f"Prompt {name!r} has {len(prompt)} tokens; with a response of "
                f"{rules.response_length} that is more than the model's "
                f"{config.max_position_embeddings} positions. Shorten it, leave it out, or lower "
                "response_length."
            )


def generate_diffusion(
    decoder: BlockDiffusion,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[DiffusionResponse]:
    """Decodes every prompt.

    Args:
      decoder: the model and its rules.
      params: the model's parameters; on a mesh, rows and caches are spread over it (`placement`).
      prompts: token ids.
      ids: a name for each prompt; errors use it, and so does its random stream.
      batch_size: prompts decoded together; on a mesh, as in `jaxspec.decoding.generate.generate`.
      seed: of the random streams.
      progress: called with the number of prompts done since the last call.

    Returns:
      Responses in the order of the prompts.

    Raises:
      ValueError: see `check_diffusion_prompts`; also a prompt on which the model gave NaN.
    """
    check_diffusion_prompts(prompts, ids=ids, decoder=decoder)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
    responses: dict[int, DiffusionResponse] = {}
    with on_mesh_of(params):
        pieces = decoder.prepare(params)

        def run(state: DiffusionState, *, leave_on_end: bool) -> DiffusionState:
            return decoder.run(pieces, state, leave_on_end=leave_on_end)

        def answer(state: DiffusionState, row: int, index: int) -> DiffusionResponse:
            host = jax.device_get(dataclasses.replace(state, cache=None))
            return read_diffusion(host, row, name=ids[index], decoder=decoder)

        for group in groups(prompts, batch_size):
            # Canvases of a batch are of one width.
            length = bucket_length(max(len(prompts[index]) for index in group))

            def started(batch: Sequence[int], length: int = length) -> DiffusionState:
                padded = pad_prompts(
                    [prompts[index] for index in batch],
                    ids=[ids[index] for index in batch],
                    length=length,
                    rows=prefill_rows(bucket_length(len(prompts[batch[0]])), rows=batch_size),
                    seed=seed,
                )
                state = decoder.start(padded)
                return decoder.prefill(pieces, state) if decoder.has_prefill else state

            queue = prefill_batches(group, prompts, rows=batch_size)
            for index, response in serve(queue, started, run, answer, rows=batch_size):
                responses[index] = response
                if progress is not None:
                    progress(1)
    return [responses[index] for index in range(len(prompts))]


def decode_batches(
    decoder: BlockDiffusion,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    batch_size: int,
    seed: int,
) -> Iterator[tuple[list[int], DiffusionState]]:
    """Decodes prompts batch by batch, for those who need the whole state (`calibration`).

    A batch waits for its longest response; `generate_diffusion` refills rows instead.

    Yields:
      (the prompts of a batch, its final state on the device), longest prompts first.
    """
    check_diffusion_prompts(prompts, ids=ids, decoder=decoder)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for first in range(0, len(order), batch_size):
        group = order[first : first + batch_size]
        padded = pad_prompts(
            [prompts[index] for index in group],
            ids=[ids[index] for index in group],
            length=bucket_length(len(prompts[group[0]])),
            rows=batch_size,
            seed=seed,
        )
        # Not around the `yield`: the caller may use another mesh.
        with on_mesh_of(params):
            state = decoder.run(params, decoder.start(padded))
        yield group, state


def read_diffusion(
    state: DiffusionState, row: int, *, name: str, decoder: BlockDiffusion
) -> DiffusionResponse:
    """The response in one row of a state that is on the host.

    Raises:
      ValueError: names the prompt, if the model gave NaN on it.
    """
    rules = decoder.rules
    if state.failed_B[row]:
        raise ValueError(
            f"Decoding gave NaN or infinite logits on prompt {name!r}: check the model's weights."
        )
    start = int(state.prompt_B[row])
    response = np.asarray(state.tokens_BT[row, start : start + rules.response_length])
    tokens = response.tolist()
    stops = [place for place, token in enumerate(tokens) if token in rules.stop_ids]
    passes, steps = np.asarray(state.passes_BN[row]), np.asarray(state.steps_BN[row])
    return DiffusionResponse(
        prompt_id=name,
        tokens=tuple(tokens[: stops[0] + 1] if stops else tokens),
        stopped=bool(stops),
        passes=tuple(passes[passes > 0].tolist()),
        steps=tuple(steps[passes > 0].tolist()),
        filled=int((response != rules.mask_id).sum()),
    )
