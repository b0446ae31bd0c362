"""What a run was started with: kept in its checkpoints, and compared when the run continues.

The record is that of `jaxspec.provenance`, with the fingerprints of the models that the run reads.
A run that was continued with other settings has segments: the record of each part.

>>> settings = {"loss": {"focal": 0.0}, "name": "a"}
>>> recorded = {"loss": {"focal": 0.3}, "name": "b"}
>>> differences(settings, recorded)
[Difference(setting='loss.focal', got=0.0, recorded=0.3), Difference(setting='name', got='a', \
recorded='b')]
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxspec.checkpoints.folders import fingerprint
from jaxspec.config import RunConfig
from jaxspec.files import user_path
from jaxspec.provenance import jsonable, provenance
from jaxspec.training.optimizer import warmup_steps
from jaxspec.training.run_record import recorded_config
from jaxspec.training.tasks.settings import GROUPS, MAY_CHANGE, groups_read, within
from jaxspec.training.tasks.task import PreparedTask

Record = dict[str, Any]

_DATA, _OWN_TERM = "data", "loss.extra"
_PROCESS = ("command", "commit", "dirty", "versions", "devices", "time")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One setting that differs."""

    setting: str
    got: Any
    recorded: Any


def fresh_record(run: PreparedTask) -> Record:
    """The record of a run that begins now."""
    config, reads = run.task.config, run.task.reads
    weights = {setting: fingerprint(path) for setting, path in reads.items()}
    return {
        **provenance(config=config, seed=config.training.seed),
        "fingerprints": {**weights, **own_terms(config), _DATA: run.pipeline.fingerprint},
        "schedule_from_step": 0,
    }


def own_terms(config: RunConfig) -> dict[str, str]:
    """Fingerprints of the files with loss terms of the user's own, so that a change is noticed.

    A module is the file that Python finds for it, a package its `__init__.py`. What they import is
    not looked at. A module without a file (a built-in one, or one that is not found) has none.

    Raises:
      OSError: such a file cannot be read.
    """
    if "loss" not in groups_read(config.training.task, objective=config.denoiser.objective):
        return {}
    sources = {term.source for term in config.loss.extra_terms if term.source}
    files = {source: file for source in sources if (file := _file_of(source)) is not None}
    return {
        f"{_OWN_TERM} {source}": hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for source, file in sorted(files.items())
    }


def _file_of(source: str) -> Path | None:
    """The file of a loss term: that which is named, or the module's; None: it has none."""
    if source.endswith(".py"):
        return user_path(source)
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        return None
    origin = None if spec is None or not spec.has_location else spec.origin
    return Path(origin) if origin and Path(origin).is_file() else None


def continued_record(
    recorded: Record | None,
    fresh: Record,
    *,
    step: int,
    workdir: Path,
    accept_changes: bool = False,
    restart_schedule: bool = False,
) -> Record:
    """The record of a run that continues from a checkpoint.

    Args:
      recorded: the record in the checkpoint; None: it was saved before there were records.
      fresh: `fresh_record` of what is asked for now.
      step: step of the checkpoint.
      workdir: the run's folder, for messages.
      accept_changes: continue with other settings; they become a new segment.
      restart_schedule: continue for more steps, or with accepted changes, with a schedule that
        starts at this step.

    Returns:
      The recorded one if nothing differs, otherwise one with a new segment.

    Raises:
      ValueError: settings or weights differ and were not accepted; the message has a table of them.
        Also if they were accepted but no step is left, or if a schedule is to start again
        although nothing differs, neither now nor when it did so before.
    """
    is_over = fresh["config"]["training"]["steps"] <= step
    if recorded is None:
        if not accept_changes:
            raise ValueError(
                f"The checkpoint in {workdir} was saved by a version of jaxspec that did not "
                "record settings, so they cannot be compared. Use another --workdir, or add "
                "--accept_changes True to continue with the present settings."
            )
        if is_over:
            raise ValueError(_no_step_left(fresh, step=step, workdir=workdir))
        schedule_from = step if restart_schedule else fresh["schedule_from_step"]
        added = _with_segment({"config": None}, fresh, step=step)
        return {**added, "schedule_from_step": schedule_from}
    config = recorded_config(recorded["config"], where="recorded config")
    recorded = {**recorded, "config": jsonable(config)}
    found = _changes(recorded, fresh)
    steps = next((d for d in found if d.setting == "training.steps" and d.got > step), None)
    may_be_longer = steps is not None and (
        restart_schedule or _is_constant_from(step, recorded, fresh)
    )
    refused = [d for d in found if not (may_be_longer and d is steps)]
    if refused and not accept_changes:
        raise ValueError(
            _refusal(
                refused, step=step, workdir=workdir, may_restart=steps in refused, is_over=is_over
            )
        )
    if found and is_over:
        raise ValueError(_no_step_left(fresh, step=step, workdir=workdir))
    if not found and restart_schedule and not recorded["schedule_from_step"]:
        raise ValueError(nothing_to_restart(f"The run in {workdir} has the settings it began with"))
    if not found:
        return {**recorded, "resumed": [*recorded.get("resumed", []), _start(fresh, step)]}
    schedule_from = step if restart_schedule else recorded["schedule_from_step"]
    return {**_with_segment(recorded, fresh, step=step), "schedule_from_step": schedule_from}


def _with_segment(recorded: Record, fresh: Record, *, step: int) -> Record:
    """The record of a run whose next part has other settings."""
    before = recorded.get("segments", [_segment(recorded, from_step=0)])
    return {**fresh, "segments": [*before, _segment(fresh, from_step=step)]}


def _segment(record: Record, *, from_step: int) -> Record:
    """What is kept of one part of a run."""
    kept = ("config", "fingerprints", *_PROCESS)
    return {"from_step": from_step, **{key: record[key] for key in kept if key in record}}


def _start(fresh: Record, step: int) -> Record:
    """What is kept of a start that continued with the same settings."""
    return {"from_step": step, **{key: fresh[key] for key in _PROCESS}}


def differences(got: Any, recorded: Any, *, setting: str = "") -> list[Difference]:
    """Every leaf in which two nested groups of settings differ."""
    if not (isinstance(got, Mapping) and isinstance(recorded, Mapping)):
        return [] if got == recorded else [Difference(setting, got, recorded)]
    prefix = f"{setting}." if setting else ""
    return [
        difference
        for name in dict.fromkeys((*got, *recorded))
        for difference in differences(got.get(name), recorded.get(name), setting=prefix + name)
    ]


def _changes(recorded: Record, fresh: Record) -> list[Difference]:
    """What differs but may not differ."""
    task, objective = (
        fresh["config"]["training"]["task"],
        fresh["config"]["denoiser"]["objective"],
    )
    read = groups_read(task, objective=objective)
    unread = {group for groups in GROUPS.values() for group in groups} - set(read)
    free = (*MAY_CHANGE, *unread)
    settings = [
        difference
        for difference in differences(fresh["config"], recorded["config"])
        if not within(difference.setting, free)
    ]
    contents = [
        dataclasses.replace(difference, setting=_content(difference.setting))
        for difference in differences(fresh["fingerprints"], recorded["fingerprints"])
        # If settings of the data differ, so does its content.
        if (difference.setting != _DATA or not any(d.setting.startswith("data.") for d in settings))
        # Of modules, older records say nothing.
        and not (difference.recorded is None and difference.setting.startswith(_OWN_TERM))
    ]
    return settings + contents


def _content(fingerprinted: str) -> str:
    """What messages call something that has a fingerprint."""
    if fingerprinted == _DATA:
        return f"{_DATA} (texts or tokenizer)"
    kind = "code" if fingerprinted.startswith(_OWN_TERM) else "weights"
    return f"{fingerprinted} ({kind})"


def _is_constant_from(step: int, recorded: Record, fresh: Record) -> bool:
    """Whether more or fewer steps change no learning rate from here on."""
    begin = recorded["schedule_from_step"]
    return all(
        record["config"]["optimizer"]["schedule"] == "constant"
        and warmup_steps(
            record["config"]["optimizer"]["warmup_fraction"],
            record["config"]["training"]["steps"] - begin,
        )
        <= step - begin
        for record in (recorded, fresh)
    )


def nothing_to_restart(cause: str) -> str:
    """Why --restart_schedule is refused."""
    return (
        f"{cause}, so there is no schedule to restart. Leave --restart_schedule out, or set more "
        "steps (training.steps)."
    )


def _no_step_left(fresh: Record, *, step: int, workdir: Path) -> str:
    steps = fresh["config"]["training"]["steps"]
    return (
        f"The run in {workdir} has taken {step} steps, and training.steps is {steps}: no step is "
        "left for other settings. Set more steps, or use another --workdir. `jaxspec export` "
        "writes the weights of this run as they are."
    )


def _refusal(
    found: list[Difference], *, step: int, workdir: Path, may_restart: bool, is_over: bool
) -> str:
    rows = [("setting", "got", "recorded")]
    rows += [(d.setting, _shown(d.got), _shown(d.recorded)) for d in found]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    table = "\n".join(
        f"  {name:<{widths[0]}}  {got:<{widths[1]}}  {recorded}" for name, got, recorded in rows
    )
    longer = (
        " To train for more steps with a new warm-up and decay, add --restart_schedule True."
        if may_restart
        else ""
    )
    more = " and more steps" if is_over else ""
    return (
        f"The run in {workdir} was started with other settings. Its checkpoint is at step {step}.\n"
        f"\n{table}\n\nUse the recorded settings, or another --workdir.{longer} To continue from "
        f"step {step} with the new settings{more}, add --accept_changes True: provenance.json then "
        "lists both parts."
    )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
