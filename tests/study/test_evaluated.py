"""What finished evaluations leave, read together; their files are written by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jaxspec.config import RunConfig
from jaxspec.evals.report import write_json
from jaxspec.study.declaration import StudyConfig, StudyDecoding
from jaxspec.study.records import begun, write_record
from jaxspec.study.results import read_results, refuse_unusable, write_results
from jaxspec.study.units import Unit, units_of
from tests.evals.rows import result_row
from tests.study.tiny import STUDY

WITH = {"target_weights": "aaaa", "prompt_digests": {"embedded/math": "1111"}}
NEW_WEIGHTS = {**WITH, "target_weights": "bbbb"}
NEW_PROMPTS = {**WITH, "prompt_digests": {"embedded/math": "2222"}}
SMALL = "evaluations/small/block"


def units(folder: Path, study: StudyConfig = STUDY) -> list[Unit]:
    return units_of(study, configs={"run": RunConfig()}, folder=folder, is_read=lambda *_: True)


def measured(folder: Path, study: StudyConfig = STUDY, **provenance) -> list[Unit]:
    """The units of a study whose evaluations are done, all of them measured with `WITH`.

    `provenance`: for evaluations whose names end so (with "_" for "-"), in place of `WITH`.
    """
    found = units(folder, study)
    for unit in found:
        record = begun(unit, None)
        record.attempts[-1].status = 0
        write_record(folder, unit, record)
        if unit.kind == "evaluation":
            its_own = next(
                (p for end, p in provenance.items() if unit.name.endswith(end.replace("_", "-"))),
                WITH,
            )
            leave(unit, its_own)
    return found


def leave(unit: Unit, provenance, **changes) -> None:
    row = result_row(unit.loss, "embedded/math", reached_at=[100, 60, 30], **changes)
    write_json(unit.output, provenance=provenance, results=[row])


def write(folder: Path, found: list[Unit], study: StudyConfig = STUDY) -> list[Path]:
    refuse_unusable(study, found, folder=folder)
    return write_results(study, found, folder=folder, provenance={})


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (NEW_WEIGHTS, r"The weights of the target 'small' have changed"),
        (NEW_PROMPTS, r"The prompts of the benchmark 'embedded/math' for 'small' have changed"),
    ],
)
def test_evaluations_of_other_weights_or_prompts_are_not_mixed(tmp_path, changed, what):
    found = measured(tmp_path, full_seed1=changed)
    with pytest.raises(ValueError, match=what) as raised:
        write(tmp_path, found)
    message = str(raised.value)
    sides = [line for line in message.splitlines() if line.startswith("  ")]
    assert len(sides) == 2
    assert f"{SMALL}/uniform-seed0, " in sides[0]
    assert sides[1].endswith(f": {SMALL}/full-seed1")
    assert f"Delete the evaluation files of all sides but one (such as {tmp_path}" in message
    # Without these files, the others belong together.
    (tmp_path / f"{SMALL}/full-seed1.json").unlink()
    assert write(tmp_path, found)


def test_drafters_that_learned_other_texts_are_not_mixed(tmp_path):
    found = measured(tmp_path)
    drafters = {unit.name: unit for unit in found if unit.kind == "drafter"}

    def learned(name: str, digest: str, **data: str) -> None:
        unit = drafters[f"drafters/small/{name}"]
        changed = dataclasses.replace(unit.config.data, **data)
        unit = dataclasses.replace(unit, config=dataclasses.replace(unit.config, data=changed))
        record = begun(unit, None)
        record.attempts[-1].status = 0
        record.provenance = {"fingerprints": {"data": digest}}
        write_record(tmp_path, unit, record)

    for name in ("uniform-seed0", "full-seed0"):
        learned(name, "aaaa")
    # Another seed, and older records.
    learned("uniform-seed1", "bbbb")
    assert write(tmp_path, found)
    learned("full-seed0", "cccc", raw_dir="elsewhere")
    with pytest.raises(ValueError, match=r"The texts that drafters of 'small' learn have changed"):
        refuse_unusable(STUDY, found, folder=tmp_path)
    with pytest.raises(ValueError) as raised:
        write_results(STUDY, found, folder=tmp_path, provenance={})
    assert "\n  aaaa: drafters/small/uniform-seed0\n  cccc: drafters/small/full-seed0\n" in str(
        raised.value
    )
    # Other settings of the data are there to be compared.
    learned("full-seed0", "cccc", max_examples=7)
    assert write(tmp_path, found)
    # The message's way out: neither the drafter nor what measured it.
    learned("full-seed0", "cccc")
    (tmp_path / f"{SMALL}/full-seed0.json").unlink()
    assert write(tmp_path, found)


def test_older_evaluations_are_not_compared(tmp_path):
    assert write(tmp_path, measured(tmp_path, uniform_seed0={}))
    units_of_results = read_results(tmp_path).provenance["units"]
    assert units_of_results[f"{SMALL}/full-seed0"]["target_weights"] == "aaaa"
    assert "target_weights" not in units_of_results[f"{SMALL}/uniform-seed0"]


def test_ways_of_decoding_may_ask_for_other_numbers_of_prompts(tmp_path):
    few = StudyDecoding("few", {"evaluation.prompts": 6, "evaluation.timing_prompts": 0})
    study = dataclasses.replace(STUDY, decodings=(*STUDY.decodings, few))
    found = measured(tmp_path, study)
    for unit in found:
        if unit.decoding == "few":
            leave(unit, NEW_PROMPTS)
    assert write(tmp_path, found, study)


def test_rows_of_drafters_of_another_target_keep_their_mark(tmp_path):
    found = measured(tmp_path)
    (unit,) = [unit for unit in found if unit.name == f"{SMALL}/full-seed1"]
    leave(unit, WITH, trained_on_other_target=True)
    write(tmp_path, found)
    entries = read_results(tmp_path).summary
    assert [(e["loss"], e["seeds"], e["gain"] is None) for e in entries] == [
        ("uniform", [0, 1], True),
        ("full", [0], False),
        ("full (other target)", [1], True),
    ]
    assert "| full (other target) |" in (tmp_path / "results.md").read_text()


def test_a_damaged_evaluation_is_named_before_anything_runs(tmp_path):
    found = measured(tmp_path)
    file = tmp_path / f"{SMALL}/uniform-seed0.json"
    file.write_text(file.read_text()[:200])
    message = rf"(?s)uniform-seed0 is done, but .*Delete {file}, and the unit is run again\."
    with pytest.raises(ValueError, match=message):
        refuse_unusable(STUDY, found, folder=tmp_path)
    file.unlink()
    refuse_unusable(STUDY, found, folder=tmp_path)


def test_results_of_something_else_are_not_overwritten(tmp_path):
    found = measured(tmp_path)
    write(tmp_path, found)
    names = ("results.json", "summary.json", "results.md", "results.csv", "results.tex")
    refuse_unusable(STUDY, found, folder=tmp_path)  # Its own files.
    for name in names:
        file = tmp_path / name
        own = file.read_text()
        file.write_text('{"results": [], "provenance": {}}' if name.endswith("json") else "mine")
        with pytest.raises(ValueError, match=rf"{file} .*would overwrite it: name another "):
            refuse_unusable(STUDY, found, folder=tmp_path)
        file.write_text(own)
    other = json.loads((tmp_path / "results.json").read_text())
    other["study"]["name"] = "other"
    (tmp_path / "results.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="holds results of the study 'other'"):
        refuse_unusable(STUDY, found, folder=tmp_path)
