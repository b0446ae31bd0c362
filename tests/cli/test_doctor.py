from __future__ import annotations

import importlib.metadata

import jax
import pytest

from jaxspec.cli import doctor
from jaxspec.cli.doctor import Finding


def only(check) -> Finding:
    (finding,) = check()
    return finding


def test_versions_are_those_installed():
    found = {finding.name: finding for finding in doctor.check_versions()}
    assert found["jax"] == Finding("jax", "ok", importlib.metadata.version("jax"))
    assert {finding.status for finding in found.values()} == {"ok"}


def test_missing_package_fails(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("jax", "no-such-distribution"))
    finding = list(doctor.check_versions())[-1]
    assert (finding.name, finding.status) == ("no-such-distribution", "fail")
    assert "setup_venv.sh" in finding.detail


def test_old_python_fails(monkeypatch):
    monkeypatch.setattr(doctor, "MINIMUM_PYTHON", (99, 0))
    assert next(iter(doctor.check_versions())).status == "fail"


def test_devices_and_compile():
    devices = only(doctor.check_devices)
    assert devices.status == "ok"
    assert "cpu" in devices.detail
    assert only(doctor.check_compile).status == "ok"


def test_the_attention_of_these_devices():
    detail = only(doctor.check_attention).detail
    assert "chunked (bfloat16 on a cpu, more than 256 tokens)" in detail


def test_embedded_files(monkeypatch):
    monkeypatch.setattr(doctor, "EMBEDDED_FILES", {"no_such_folder": ("a", "b")})
    finding = only(doctor.check_embedded)
    assert (finding.name, finding.status) == ("no such folder", "fail")
    assert "missing a, b" in finding.detail


def test_raw_data(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXSPEC_RAW_DATA", raising=False)
    assert only(doctor.check_raw_data).status == "note"
    (tmp_path / "gsm8k").mkdir()
    monkeypatch.setenv("JAXSPEC_RAW_DATA", str(tmp_path))
    finding = only(doctor.check_raw_data)
    assert finding.status == "ok"
    assert finding.detail.endswith("gsm8k")
    monkeypatch.setenv("JAXSPEC_RAW_DATA", str(tmp_path / "absent"))
    assert only(doctor.check_raw_data).status == "fail"


def test_little_disk_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e12)
    assert only(doctor.check_disk).status == "note"


def test_a_check_that_raises_is_a_finding_and_the_others_run():
    def check_broken_thing():
        raise OSError("gone")
        yield

    def check_fine():
        yield Finding("fine", "ok", "yes")

    findings = doctor.examine([check_broken_thing, check_fine])
    assert findings == [
        Finding("broken thing", "fail", "OSError: gone"),
        Finding("fine", "ok", "yes"),
    ]


def test_exit_status_follows_the_findings(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "examine", lambda: [Finding("a", "note", "[b]"), Finding("c", "ok", "")]
    )
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    assert "Ready." in printed
    assert "[b]" in printed, "details are text, not markup"
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("a", "fail", "why")])
    assert doctor.main([]) == 1
    assert "1 problem(s): a" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "extra"),
    [
        ("nvidia0", "cuda13"),
        ("accel0", "tpu"),
        ("vfio/0", "tpu"),
        ("nvidiactl", ""),
        ("vfio/vfio", ""),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_a_note(tmp_path, monkeypatch, device, extra):
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    monkeypatch.setattr(doctor, "DEVICES", tmp_path)
    found = list(doctor.check_accelerator())
    if not extra:
        assert found == []
        return
    (finding,) = found
    assert (finding.name, finding.status) == ("accelerator", "note")
    assert f"bash scripts/setup_venv.sh {extra})" in finding.detail


def test_an_accelerator_in_use_is_no_note(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(doctor, "DEVICES", tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert list(doctor.check_accelerator()) == []
