"""Each way to break a checkpoint fails on the line that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxspec.checkpoints.folders import EMBEDDED_TARGET
from jaxspec.config import TargetConfig
from jaxspec.evals.opening import TargetBundle, open_drafter
from jaxspec.models.dflash import DFlash
from jaxspec.parity.comparison import compare
from jaxspec.parity.recorded import as_recorded
from jaxspec.training.draft_record import KEY
from tests.parity import trained

Json = dict[str, Any]
Weights = dict[str, np.ndarray]


def failures(run: Path, *, target: Path | str = "embedded") -> list[str]:
    """The lines that fail."""
    findings = compare(
        TargetConfig(path=str(target)),
        str(run),
        questions=trained.QUESTIONS,
        new_tokens=trained.NEW_TOKENS,
        say=lambda _: None,
    )
    assert "not run" not in [finding.status for finding in findings if "layers:" in finding.name]
    return [finding.name for finding in findings if finding.status == "FAIL"]


def parted(found: list[str]) -> tuple[list[str], list[str]]:
    """(lines about the record, the lines that a checkpoint without a record would get, too)."""
    recorded = [name for name in found if name.startswith("as exported: ")]
    return recorded, [name for name in found if name not in recorded]


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be broken."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def edit(run: Path, change: Callable[[Json], object]) -> None:
    file = run / "export" / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def rewrite(run: Path, change: Callable[[Weights], object]) -> None:
    file = run / "export" / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def forget(run: Path) -> None:
    """What remains is a checkpoint that someone else might have made."""
    (run / "export" / "provenance.json").unlink()


def shift(step: int) -> Callable[[Json], object]:
    def change(config: Json) -> None:
        special = config["dflash_config"]
        special["target_layer_ids"] = [number + step for number in special["target_layer_ids"]]

    return change


def theta(value: float) -> Callable[[Json], object]:
    def change(config: Json) -> None:
        config["rope_theta"] = config["rope_parameters"]["rope_theta"] = value

    return change


def mask(token: int) -> Callable[[Json], object]:
    return lambda config: config["dflash_config"].update(mask_token_id=token)


def slides(config: Json) -> None:
    config["layer_types"] = ["sliding_attention"] * 2
    config.update(sliding_window=5, use_sliding_window=True, is_causal=False)


def causal(config: Json) -> None:
    config["is_causal"] = config["dflash_config"]["causal"] = True


def ones(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: np.ones_like(weights[name])})


def swap(weights: Weights) -> None:
    for name in [name for name in weights if name.startswith("layers.0.")]:
        other = name.replace("layers.0.", "layers.1.")
        weights[name], weights[other] = weights[other], weights[name]


def test_sound(run: Path) -> None:
    assert not failures(run)
    forget(run)
    assert not failures(run)


EDITS: dict[str, tuple[Callable[[Json], object], list[str]]] = {
    # A line about the record, and one that needs none; "": nothing shows without the record.
    "layer ids one too high": (shift(1), ["layer ids", "trained as stated: layer ids"]),
    "layer ids one too low": (shift(-1), ["layer ids", "trained as stated: layer ids"]),
    "rope_theta": (theta(1e6), ["RoPE", "trained as stated: RoPE"]),
    "mask of a used token": (mask(2), ["mask token", "mask row is unused"]),
    "mask of an unused token": (mask(5), ["mask token", ""]),
    "block size": (lambda config: config.update(block_size=5), ["block size", ""]),
    "window": (slides, ["window", "trained as stated: window"]),
    "causality": (causal, ["causality", ""]),
    "norm epsilon": (lambda config: config.update(rms_norm_eps=1e-5), ["shape", ""]),
}


COVERED = {
    "layer ids one too low": "one too high covers it, and test_the_record_tells_every_edit",
    "mask of an unused token": "the used token covers it, and test_the_record_tells_every_edit",
    "block size": "test_the_record_tells_every_edit covers its line",
    "norm epsilon": "test_the_record_tells_every_edit covers its line",
}
"""Why the passes of an edited checkpoint, which are programs of its own, are for --slow."""


@pytest.mark.parametrize("name", EDITS)
def test_the_record_tells_every_edit(run: Path, target: TargetBundle, name: str) -> None:
    change, (recorded, _) = EDITS[name]
    record = json.loads((run / "export" / "provenance.json").read_text())[KEY]
    edit(run, change)
    findings = as_recorded(record, target, open_drafter(str(run), target=target), is_rounded=False)
    failed = [finding.name for finding in findings if finding.status == "FAIL"]
    assert f"as exported: {recorded}" in failed


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow(COVERED[name]) if name in COVERED else ())
        for name in EDITS
    ],
)
def test_config(run: Path, name: str) -> None:
    change, (recorded, unrecorded) = EDITS[name]
    edit(run, change)
    by_record, others = parted(failures(run))
    assert f"as exported: {recorded}" in by_record
    assert unrecorded in others if unrecorded else not others


WEIGHTS: dict[str, tuple[Callable[[Weights], object], str]] = {
    "context norm": (ones("hidden_norm.weight"), "context norm"),
    "final norm": (ones("norm.weight"), "final norm"),
    "layers swapped": (swap, "weights"),
    "a matrix": (lambda weights: weights["fc.weight"].__imul__(1.01), "weights"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(run: Path, name: str) -> None:
    change, line = WEIGHTS[name]
    rewrite(run, change)
    by_record, others = parted(failures(run))
    assert f"as exported: {line}" in by_record
    assert not others  # Every program agrees on the changed weights.


def test_trained_with_a_mask_in_slot_0(target: TargetBundle, tmp_path: Path) -> None:
    assert target.mask_id is not None
    # A narrow window, so that the slots depend on slot 0.
    kinds = ("sliding_attention", "sliding_attention")
    drafter = trained.network(target, layer_types=kinds, sliding_window=4, is_causal=False)
    params = trained.by_heart(target, drafter, fault=trained.mask_in_slot_0(target.mask_id))
    run = trained.export(tmp_path, target, "embedded", drafter, params)
    assert failures(run) == ["trained as stated: slot 0"]


def test_trained_without_the_context_norm(
    target: TargetBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = trained.network(target)

    def large_context(target: TargetBundle, drafter: DFlash) -> Any:
        """Values of a size that the norm changes a lot, as those of large models have."""
        params = initial(target, drafter)
        return {**params, "fc": {"kernel": 8.0 * params["fc"]["kernel"]}}

    initial = trained.initial
    monkeypatch.setattr(trained, "initial", large_context)
    params = trained.by_heart(target, drafter, fault=trained.without_context_norm)
    run = trained.export(tmp_path, target, "embedded", drafter, params)
    assert failures(run) == ["trained as stated: context norm"]


@pytest.fixture
def other_target(tmp_path: Path) -> Path:
    """A copy of the embedded target, to be changed."""
    return Path(shutil.copytree(EMBEDDED_TARGET, tmp_path / "target"))


def test_another_chat_template(run: Path, other_target: Path) -> None:
    file = other_target / "tokenizer_config.json"
    config = json.loads(file.read_text())
    # As many tokens: the passes' programs are those of the other tests.
    config["chat_template"] = config["chat_template"].replace("assistant\\n", "assistant ")
    file.write_text(json.dumps(config))
    assert failures(run, target=other_target) == ["chat template", "as exported: chat template"]
    forget(run)
    assert failures(run, target=other_target) == ["chat template"]


def test_another_target_of_the_same_shape(run: Path, other_target: Path) -> None:
    file = other_target / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if ".mlp." in name]:
        weights[name] = 0.7 * weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    found = failures(run, target=other_target)
    assert "as exported: target" in found
    assert "as exported: drafts" in found
