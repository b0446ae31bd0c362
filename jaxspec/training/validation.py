"""Loss and simulated accepted length on held-out data, measured while a run trains.

Every measurement reads the same rows with the same random anchors and masks, so that two of them
differ only by the weights. Nothing that is drawn in training depends on it: a run with validation
has the weights of one without.

Dimension key: B rows of this process, S positions of a row.

>>> validation = Validation.of(                                               # doctest: +SKIP
...     held_out, objective, config=config, local_rows=rows, frozen=frozen, mesh=mesh,
...     params_shardings=shardings, fingerprints={})
>>> validation.measure(state.params)["validation_tau"]                        # doctest: +SKIP
1.93
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxspec.checkpoints.shapes import flatten_paths
from jaxspec.checkpoints.train_state import Score
from jaxspec.config import RunConfig
from jaxspec.data.packing import NothingToLearn, PackedRows, Row
from jaxspec.data.parts import is_to_hold_out, validation_examples
from jaxspec.data.pipeline import packed_rows
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.losses import LossWeights
from jaxspec.parallel.rules import global_batch
from jaxspec.parallel.step import Body, Reduce, spread
from jaxspec.provenance import jsonable
from jaxspec.training.metrics import Sums, add, means
from jaxspec.training.objectives import Batch, Metrics, Objective, same_for_equal
from jaxspec.training.tasks.settings import MAY_CHANGE, within

LOSS, TAU = "validation_loss", "validation_tau"
_TERM = "term/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out data, packed like the data of the run."""

    rows: PackedRows
    digest: str
    """Hash of its documents."""

    def batches(self, *, count: int, size: int, first: int, local: int) -> list[dict[str, Any]]:
        """The rows of this process in each batch, with their numbers in it.

        The rows are drawn once, with a fixed seed: packing puts the longest documents first. A last
        batch without enough of them ends with empty rows.

        Args:
          count: at most this many batches.
          size: rows of a batch, over all processes.
          first: number of the first row of this process in a batch.
          local: B, rows of this process.
        """
        order = np.random.default_rng(0).permutation(len(self.rows))[: count * size]
        empty = {name: np.zeros_like(value) for name, value in self.rows[0].items()}

        def row(number: int) -> Row:
            return self.rows[int(order[number])] if number < len(order) else empty

        numbers = np.arange(first, first + local)
        return [
            {
                **{
                    name: np.stack([row(start + int(number))[name] for number in numbers])
                    for name in empty
                },
                "rows": numbers.astype(np.int32),
            }
            for start in range(0, len(order), size)
        ]


def read_held_out(config: RunConfig, tokenizer: Tokenizer) -> HeldOut | None:
    """The held-out data of a run; None if it has none, or is not to be measured.

    Raises:
      ValueError: files that are missing, or held-out data with nothing to learn.
    """
    if config.training.validate_every == 0:
        return None
    examples = validation_examples(config.data)
    if not examples:
        return None
    try:
        rows, _, digest = packed_rows(examples, tokenizer, data=config.data)
    except ValueError as error:
        cause = error.cause if isinstance(error, NothingToLearn) else error
        raise ValueError(
            f"The held-out part of the data cannot be measured. {cause} Hold out other "
            "conversations (data.validation), set a larger data.sequence_length, or measure "
            "nothing (--training.validate_every 0)."
        ) from error
    return HeldOut(rows=rows, digest=digest)


def held_out_warnings(config: RunConfig, held_out: HeldOut | None) -> list[str]:
    """Says that a run was to be measured on held-out data but has none.

    Args:
      config: the run.
      held_out: what `read_held_out` gives.
    """
    every, share = config.training.validate_every, config.data.validation
    if held_out is not None or every == 0:
        return []
    if is_to_hold_out(config.data):
        cause = (
            f"None of the prompts is chosen by data.validation {share:g}: there are too few, or "
            "those that it chooses were taken out before. `jaxspec import-data --validation` "
            "chooses by the same hash. "
            if share
            else "The validation part of the data is empty. "
        )
    elif every is not None:
        cause = f"training.validate_every is {every}, but data.validation is 0. "
    else:
        return []
    return [
        "Warning: nothing is held out, so the loss is not measured, and the last step is exported "
        f"instead of the best. {cause}Set data.validation to a larger share."
    ]


@same_for_equal
def make_measuring_body(objective: Objective) -> Body:
    """The body that `jaxspec.parallel.step.spread` compiles: terms and metrics, no gradient."""

    def body(
        params: Any,
        frozen: Any,
        batch: Batch,
        hyper: tuple[jax.Array, LossWeights],
        *,
        reduce: Reduce,
        vary: Reduce,
    ) -> tuple[tuple[()], Metrics]:
        del vary
        key, weights = hyper
        terms, metrics = objective(params, frozen, batch, key, weights)
        named = {f"{_TERM}{name}": term for name, term in terms.items()}
        return (), reduce(metrics | named)

    return body


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """What is measured, and when."""

    batches: list[dict[str, Any]]
    run_batch: Callable[[Any, dict[str, Any], jax.Array], Metrics]
    """(parameters, rows of a batch, key) -> metrics and terms, on the devices."""
    total: Callable[[Mapping[str, tuple[Any, Any]]], Any]
    """Terms -> the loss."""
    measure_name: str
    """See `jaxspec.checkpoints.train_state.Score.measure`."""
    every: int | None
    """Steps between measurements besides those at checkpoints; None: there are no others."""
    parts: int = 1
    """Parts of a batch, computed one after the other as in training: a whole one may not fit."""

    @classmethod
    def of(
        cls,
        held_out: HeldOut,
        objective: Objective,
        *,
        config: RunConfig,
        local_rows: np.ndarray,
        frozen: Any,
        mesh: Mesh,
        params_shardings: Any,
        fingerprints: Mapping[str, str],
    ) -> Validation:
        """The validation of a run.

        Args:
          held_out: its data.
          objective: what it learns.
          config: the run, with everything filled in.
          local_rows: numbers of this process's rows in a batch.
          frozen: the frozen parameters, placed.
          mesh: the devices.
          params_shardings: of what is trained.
          fingerprints: of the models that the run reads.
        """
        weights = LossWeights.from_config(config.loss)
        step = spread(
            make_measuring_body(objective),
            mesh=mesh,
            path=config.mesh.path,
            state_shardings=params_shardings,
            frozen_shardings=jax.tree.map(lambda leaf: leaf.sharding, frozen),
            keeps_state=True,
        )

        def run_batch(params: Any, batch: dict[str, Any], key: jax.Array) -> Metrics:
            measured: Metrics
            _, measured = step(params, frozen, global_batch(batch, mesh), (key, weights))
            return measured

        batches = held_out.batches(
            count=config.training.validation_batches,
            size=config.data.batch_size,
            first=int(local_rows[0]),
            local=len(local_rows),
        )
        return cls(
            batches=batches,
            run_batch=run_batch,
            total=jax.jit(lambda terms: objective.total(terms, weights)),
            measure_name=measure_name(
                config, texts=held_out.digest, batches=len(batches), fingerprints=fingerprints
            ),
            every=config.training.validate_every,
            parts=config.training.gradient_accumulation,
        )

    def is_due(self, step: int) -> bool:
        """Whether to measure after a step that is no checkpoint."""
        return self.every is not None and step % self.every == 0

    def measure(self, params: Any, *, moved: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """Measures the loss and everything else that training logs, under names of their own.

        `validation_tau` is the simulated accepted length with the bonus token: 1 + the mean number
        of leading right slots of a block.

        Args:
          params: what is trained.
          moved: is called after each batch, or part of one.
        """
        measured: list[Sums] = []
        for number, batch in enumerate(self.batches):
            # The same for every run, so that runs with other seeds compare.
            key = jax.random.fold_in(jax.random.key(0), number)
            for part in range(self.parts):
                rows = {name: values[part :: self.parts] for name, values in batch.items()}
                measured.append(jax.device_get(self.run_batch(params, rows, key)))
                moved()
        sums = add(measured)
        terms = {
            name.removeprefix(_TERM): (np.float32(value), np.float32(number))
            for name, (value, number) in sums.items()
            if name.startswith(_TERM)
        }
        loss = float(self.total(terms))
        row: dict[str, Any] = {LOSS: loss if math.isfinite(loss) else None}
        found = means({name: pair for name, pair in sums.items() if not name.startswith(_TERM)})
        if found.get("accepted") is not None:
            row[TAU] = 1.0 + found["accepted"]
        return row | {f"validation_{name}": value for name, value in found.items()}

    def score(self, row: Mapping[str, Any]) -> Score | None:
        """The score of a measurement: tau where there is one, otherwise the loss.

        None if it is not a number.
        """
        if row.get(TAU) is not None:
            return Score(
                value=row[TAU], measure=self.measure_name, text=f"validation tau {row[TAU]:.3f}"
            )
        if row.get(LOSS) is None:
            return None
        return Score(
            value=-row[LOSS], measure=self.measure_name, text=f"validation loss {row[LOSS]:.4f}"
        )


def measure_name(
    config: RunConfig, *, texts: str, batches: int, fingerprints: Mapping[str, str]
) -> str:
    """A hash of what a score depends on besides the trained weights; equal ones can be compared.

    Args:
      config: of the run.
      texts: digest of what is held out.
      batches: how many are measured.
      fingerprints: of the models that stay as they are.
    """
    # `chunk_blocks` says how the loss is computed, not what it is.
    loss = dataclasses.replace(config.loss, chunk_blocks=0)
    measured = [texts, batches, dict(fingerprints), jsonable(loss), _model_settings(config)]
    measured += [config.data.sequence_length, config.data.batch_size, config.data.anchors]
    measured += [config.data.anchor_sampling]
    return hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:16]


def _model_settings(config: RunConfig) -> dict[str, Any]:
    """What decides how the trained weights are computed."""
    groups = {name: jsonable(getattr(config, name)) for name in ("drafter", "denoiser")}
    named = {path.replace("/", "."): value for path, value in flatten_paths(groups).items()}
    return {name: value for name, value in named.items() if not within(name, MAY_CHANGE)}
