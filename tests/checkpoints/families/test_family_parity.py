"""Every family of transformers against transformers, on small random models in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.family_parity import CASES, make_reference, measure
from jaxspec.checkpoints.families.kinds import KINDS

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", CASES)
def test_a_family_equals_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: no reference to compare with")
    reference = make_reference(CASES[name], tmp_path)
    assert reference.logits_BSV.std() > 0.5, "the reference is too flat to tell anything"
    found = measure(reference, tmp_path / "export")
    assert max(found.logits, found.states, found.cached) < TOLERANCE
    assert found.greedy == 0
    assert found.export == 0.0


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == set(KINDS)
