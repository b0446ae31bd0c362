"""The smallest study: two losses on a tiny target, two seeds, one benchmark; in this process."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from jaxspec.cli.main import dispatch
from jaxspec.cli.mistakes import message_of
from jaxspec.config import EvaluationConfig, RunConfig
from jaxspec.study.declaration import StudyConfig, StudyDecoding, StudyLoss, StudyTarget
from jaxspec.study.units import Unit

UNIFORM = {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}
STUDY = StudyConfig(
    name="tiny",
    targets=(StudyTarget("small", config="run"),),
    losses=(StudyLoss("uniform", UNIFORM), StudyLoss("full")),
    seeds=(0, 1),
    benchmarks=("embedded/math",),
    decodings=(StudyDecoding("block", {"evaluation.timing_prompts": 0}),),
)

_FILE = """
from jaxspec.study.declaration import *


def get_config():
    return StudyConfig(
        name="tiny",
        targets=(
            StudyTarget("small", config={config!r}, settings={{"optimizer.learning_rate": 0.02}}),
        ),
        losses=(
            StudyLoss("uniform", {{"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}}),
            StudyLoss("full"{loss}),
        ),
        seeds=(0, 1),
        benchmarks=("embedded/math",),
        decodings=(
            StudyDecoding(
                "block",
                {{
                    "evaluation.timing_prompts": 0,
                    "evaluation.prompts": 8,
                    "evaluation.max_new_tokens": 24,
                }},
            ),
        ),
    )
"""


def write_study(file: Path, *, config: Path, loss: str = "") -> Path:
    """A study of the run in a config file; `loss` adds arguments to the row "full"."""
    file.write_text(_FILE.format(config=str(config), loss=loss), encoding="utf-8")
    return file


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    status: int

    def poll(self) -> int:
        return self.status

    def wait(self) -> int:
        return self.status

    def terminate(self) -> None:
        raise AssertionError("it has ended already")

    kill = terminate


def run_here(unit: Unit, log: Path, cores: tuple[int, ...]) -> Finished:
    """Runs a unit in this process, which spares it the start of another."""
    del cores
    with log.open("w") as output, contextlib.redirect_stdout(output):
        try:
            return Finished(dispatch(unit.command) or 0)
        except ValueError as error:
            print(message_of(error))
            return Finished(2)


def unit(name: str, **changes: Any) -> Unit:
    """A unit that leaves a file of its name."""
    fields: dict[str, Any] = {
        "kind": "evaluation",
        "command": ("eval", name),
        "output": Path(name),
        "config": RunConfig(evaluation=EvaluationConfig(timing_prompts=0)),
    }
    return Unit(name, **{**fields, **changes})
