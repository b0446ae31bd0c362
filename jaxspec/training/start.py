"""Where the training loop starts: at step 0, or where a checkpoint was saved.

>>> Start(state=state, record=fresh_record(task)).step                         # doctest: +SKIP
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
    """Whether a first step that is not finite tells of a damaged checkpoint."""
    is_new_segment: bool = False
    window: Sums = dataclasses.field(default_factory=dict)
    """Metrics of steps that are not in a line yet."""

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
        """The start at a checkpoint; puts the pipeline there, and says so.

        Args:
          restored: step, state and progress.
          record_at: (step, progress) -> the record that the run continues with.
          pipeline: the run's data.
          steps: of the whole run.
          workdir: the run's folder.

        Raises:
          ValueError: a run with other settings, or with other data.
        """
        step, state, progress = restored
        # An earlier checkpoint than the one that was compared first may be of another segment.
        record = record_at(step, progress)
        is_new_segment = len(record.get("segments", ())) > len(
            (progress.get("record") or {}).get("segments", ())
        )
        position = progress["loader"]
        if is_new_segment:  # Its data may be other data.
            position = {"step": position["step"]}
        pipeline.set_state(position)
        if step < steps:
            print(f"Continuing from step {step} in {workdir}.", flush=True)
        else:
            print(f"The run in {workdir} is finished: it has taken all {step} steps.", flush=True)
        return cls(
            state=state,
            record=record,
            step=step,
            # Other settings may well be the reason.
            may_be_damaged=not is_new_segment,
            is_new_segment=is_new_segment,
            window={name: (value, count) for name, (value, count) in progress["window"].items()},
        )
