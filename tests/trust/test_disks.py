"""Full, read-only and impossible places: a command ends with one message that names the place.

A limit on the size of files stands in for a full disk: a write that crosses it fails as it would
there, even inside the libraries that write checkpoints and shards.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests.training import runs
from tests.trust.outcomes import Outcomes
from tests.trust.test_cli_values import Place, count, here, place

__all__ = ["place"]

IMPOSSIBLE = (
    "/proc/absent",
    "/dev/full/below",
    "/sys/absent",
    "{file}/below",
    "{file}/a/b",
    "{long}",
)
"""Places where nothing can be written, no matter who runs the command."""
OUTPUTS = {
    "train": "workdir",
    "eval": "output",
    "export": "output",
    "regenerate": "output",
    "calibrate": "output",
}
FAST = 4


@contextlib.contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file may become larger than this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    name = "jax_persistent_cache_min_compile_time_secs"
    kept = getattr(jax.config, name)
    jax.config.update(name, 1e9)  # The cache of programs writes files, too.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update(name, kept)


def test_outputs_that_cannot_be_made(place: Place, tmp_path: Path, is_slow: bool) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    outcomes = Outcomes("outputs that cannot be made")
    cases = [(command, where) for command in OUTPUTS for where in IMPOSSIBLE]
    for command, where in cases if is_slow else cases[::FAST]:
        output = where.format(file=file, long=tmp_path / ("n" * 300))
        if command in ("eval", "calibrate"):
            output += ".json"
        ended = here(place.arguments(command, OUTPUTS[command], output))
        named = output[:60] in ended.err
        count(outcomes, ended, (command, output), expected=2 if named else -1)
        if [entry.name for entry in tmp_path.iterdir()] != ["file"] or file.read_text() != "kept":
            outcomes.add("lost", f"{command} {output}")
    outcomes.check()


FULL = {
    "train": 20_000,
    "eval": 300,
    "export": 5_000,
    "regenerate": 50,
}
"""Command -> bytes that a file may have: less than the largest that the command writes."""


@pytest.mark.parametrize("command", FULL)
def test_disks_that_fill_up_in_the_middle(
    place: Place, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """What an earlier call of the same command wrote is not changed."""
    monkeypatch.setattr("jaxspec.files._TRIAL_BYTES", 1)  # Not noticed at the start.
    outcomes = Outcomes(f"disks that fill up: {command}")
    earlier = place.arguments(command, OUTPUTS[command], str(place.folder / f"{command}.json"))
    if command == "train":
        earlier = [*earlier, "--training.checkpoint_every", "1"]
    count(outcomes, here(earlier), (command, "with room"), expected=0)
    before = runs.contents(place.folder)
    assert before
    again = {
        "train": [*earlier, "--training.steps", "4"],
        "eval": earlier,
        "export": [*earlier, "--dtype", "float32"],
        "regenerate": [*earlier, "--limit", "2"],
    }[command]
    with full_after(FULL[command]):
        ended = here(again)
    named = f"/{command}." in ended.err
    count(outcomes, ended, (command, "full"), expected=2 if named else -1)
    after = runs.contents(place.folder)
    wanted = before
    if command == "train":  # The record of its settings and its metrics continue.
        wanted = {name: digest for name, digest in before.items() if "checkpoints/2/" in name}
    if not wanted.items() <= after.items():
        outcomes.add("lost", f"{command}: {sorted(set(wanted) - set(after))}")
    outcomes.check()
