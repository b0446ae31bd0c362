"""The share of the peak speed that a step reaches."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from jaxspec.training.needs import Needs
from jaxspec.training.progress import Reporter
from jaxspec.training.utilisation import utilisation

NEEDS = Needs(argument_bytes=0, temporary_bytes=0, result_bytes=0, operations=275e12, compile_s=0.0)


@pytest.mark.parametrize(
    ("kind", "devices", "seconds", "expected"),
    [("TPU v4", 1, 2.0, 0.5), ("TPU v4", 4, 1.0, 0.25), ("toaster", 1, 1.0, None)],
)
def test_a_step_at_a_share_of_the_peak(kind, devices, seconds, expected, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)] * devices)
    assert utilisation(NEEDS, seconds=seconds) == expected


def test_it_is_shown(capsys):
    with Reporter(steps=9, first_step=0, title="demo") as reporter:
        row = {"step": 1, "epoch": 0.25, "loss": 1.5, "tokens_per_s": 1.0, "mfu": 0.412}
        reporter.update(row, seconds_per_step=0.25)
    assert "0.25 s/step  41% of the peak" in capsys.readouterr().out
