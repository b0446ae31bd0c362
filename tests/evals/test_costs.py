"""What a pass over several rows costs."""

from __future__ import annotations

import pytest

from jaxspec.evals.costs import costs, explain_costs


@pytest.mark.parametrize(
    ("ratio", "rows", "found"),
    [
        (0.8, 8, "shared"),
        (1.5, 8, "shared"),
        (1.2, 2, "shared"),
        (1.4, 2, "between"),
        (2.0, 8, "between"),
        (1.9, 2, "arithmetic"),
        (4.6, 8, "arithmetic"),
        (8.0, 8, "arithmetic"),
        (1.0, 1, "shared"),
    ],
)
def test_costs_by_hand(ratio, rows, found):
    assert costs(ratio=ratio, rows=rows) == found


def test_only_what_was_measured_is_said():
    said = {
        name: explain_costs([(ratio, 8)], platform="gpu")
        for name, ratio in (("shared", 1.0), ("between", 2.0), ("arithmetic", 8.0))
    }
    assert len(set(said.values())) == 3
    assert "accelerator" not in "".join(said.values())
    on_cpu = explain_costs([(8.0, 8)], platform="cpu", rows_are="states")
    assert on_cpu.startswith(said["arithmetic"].replace("of rows", "of states"))
    assert "accelerator" in on_cpu
