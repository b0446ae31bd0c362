"""Where the training loop starts: at step 0, or where a checkpoint was saved.

>>> Start(state=state, record=fresh_record(run)).step                         # doctest: +SKIP
0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxspec.data.pipeline import Pipeline
from jaxspec.training.metrics import Sums
from jaxspec.training.segments import Record
from jaxspec.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where the loop starts."""

    state: TrainState
    record: Record
    step: int = 0
    """Steps taken."""
    may_be_damaged: bool = False
    """Whether a loss that is not finite at the first step means that the checkpoint is damaged."""
    is_new_segment: bool = False
    window: Sums = dataclasses.field(default_factory=dict)
    """Metrics of steps that have not been written as a line yet."""

    @classmethod
    def at_checkpoint(
        cls,
        restored: tuple[int, TrainState, dict[str, Any]],
        record_at: Callable[[int, dict[str, Any]], Record],
        *,
        pipeline: Pipeline,
        steps: int,
        workdir: Path,
    ) -> Start:
        """The start at a checkpoint; moves the pipeline to its position, and prints a line.

        Args:
          restored: step, state and progress.
          record_at: (step, progress) -> the record that the run continues with.
          pipeline: the run's data.
          steps: of the whole run.
          workdir: the run's folder.

        Raises:
          ValueError: the run has other settings or other data.
        """
        step, state, progress = restored
        # This may be an earlier checkpoint than the one first compared, of another segment.
        record = record_at(step, progress)
        is_new_segment = len(record.get("segments", ())) > len(
            (progress.get("record") or {}).get("segments", ())
        )
        position, window = progress["loader"], progress["window"]
        if is_new_segment:  # It may read other data, and measure something else.
            rows = position.get("rows", step * _batch_size(progress, pipeline.batch_size))
            position, window = {"step": position["step"], "rows": rows}, {}
        pipeline.set_state(position)
        if step < steps:
            print(f"Continuing from step {step} in {workdir}.", flush=True)
        else:
            print(f"The run in {workdir} is finished: all {step} steps are done.", flush=True)
        return cls(
            state=state,
            record=record,
            step=step,
            # With other settings, those may well be the reason.
            may_be_damaged=not is_new_segment,
            is_new_segment=is_new_segment,
            window={name: (value, count) for name, (value, count) in window.items()},
        )


def _batch_size(progress: dict[str, Any], default: int) -> int:
    """The rows of a step before a checkpoint; some older ones do not say it."""
    config = (progress.get("record") or {}).get("config") or {}
    return int(config.get("data", {}).get("batch_size", default))
