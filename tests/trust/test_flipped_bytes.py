"""One byte of a checkpoint changes on disk: it is noticed, and the previous checkpoint is used.

``JAXSPEC_FLIP_SEED`` repeats a run; the seed is printed.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.train_state import TrainCheckpoints
from jaxspec.config import RunConfig
from jaxspec.training.loop import train
from tests.training import runs
from tests.trust.outcomes import Outcomes

NEWEST = 2
State = dict[str, Any]


def make_state(step: int) -> State:
    """A state whose arrays are most of its checkpoint."""
    kernel = jax.random.normal(jax.random.key(step), (64, 128), jnp.float32)
    return {
        "step": jnp.int32(step),
        "params": {"kernel": kernel, "scale": kernel[0].astype(jnp.bfloat16)},
        "opt_state": {"mu": kernel * 1e-3, "nu": kernel**2},
    }


def shapes() -> State:
    """What a state is restored to."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        make_state(0),
    )


def progress(step: int) -> dict[str, Any]:
    """What a training loop stores besides the state."""
    return {"loader": {"step": step}, "seed": 0, "config": {"loss": {"decay": 4.0}}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of two steps."""
    workdir = tmp_path_factory.mktemp("flipped") / "run"
    checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=0)
    for step in (NEWEST - 1, NEWEST):
        checkpoints.save(step, make_state(step), progress=progress(step))
    checkpoints.close()
    return workdir


@dataclasses.dataclass(frozen=True)
class Flip:
    """One changed byte."""

    file: str
    position: int
    mask: int
    """Bits that are inverted."""

    def apply(self, folder: Path) -> None:
        """Changes the byte."""
        with (folder / self.file).open("r+b") as opened:
            opened.seek(self.position)
            byte = opened.read(1)[0]
            opened.seek(self.position)
            opened.write(bytes([byte ^ self.mask]))


def random_flips(folder: Path, *, count: int) -> Iterator[Flip]:
    """Half of them in the biggest file, the others in any file; one bit or the whole byte."""
    seed = int(os.environ.get("JAXSPEC_FLIP_SEED", time.time_ns() % 10**6))
    print(f"JAXSPEC_FLIP_SEED={seed}")
    draw = random.Random(seed)
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    files = sorted(file for file, size in sizes.items() if size)
    for _ in range(count):
        file = max(files, key=sizes.__getitem__) if draw.random() < 0.5 else draw.choice(files)
        mask = draw.choice([0xFF, 1 << draw.randrange(8)])
        yield Flip(str(file.relative_to(folder)), draw.randrange(sizes[file]), mask)


def outcome_of(folder: Path, *, read_only: bool) -> str:
    """Restores from a folder whose newest step has a flipped byte: "clean", "lost" or "silent"."""
    told: list[str] = []
    checkpoints = TrainCheckpoints(folder, keep=0, read_only=read_only)
    try:
        restored = checkpoints.restore_latest(shapes(), report=told.append)
    except ValueError:  # No step can be read, and one is whole.
        return "lost"
    finally:
        checkpoints.close()
    assert restored is not None
    step, state, got = restored
    same = jax.tree.map(np.array_equal, state, make_state(step))
    is_as_saved = all(jax.tree.leaves(same)) and got == progress(step)
    is_noticed = step == NEWEST - 1 and len(told) == 1
    if not (is_as_saved and is_noticed):
        return "silent"
    is_kept = read_only or (folder.parent / "unreadable" / str(NEWEST)).is_dir()
    return "clean" if is_kept else "lost"


def test_flipped_bytes(saved: Path, tmp_path: Path, is_slow: bool) -> None:
    outcomes = Outcomes("flipped bytes")
    flips = random_flips(saved / "checkpoints" / str(NEWEST), count=50 if is_slow else 8)
    for number, flip in enumerate(flips):
        folder = shutil.copytree(saved, tmp_path / str(number)) / "checkpoints"
        flip.apply(folder / str(NEWEST))
        outcome = outcomes.attempt(str(flip), partial(outcome_of, folder, read_only=False))
        if outcome:
            outcomes.add(outcome, str(flip))
    outcomes.check()


def test_every_file_is_watched(saved: Path, tmp_path: Path) -> None:
    """Each file once, orbax's own and the record among them."""
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    step = folder / str(NEWEST)
    files = [file for file in sorted(step.rglob("*")) if file.is_file()]
    assert len(files) > 10
    outcomes = Outcomes("a flipped byte in each file")
    for file in files:
        flip = Flip(str(file.relative_to(step)), file.stat().st_size // 2, 0xFF)
        flip.apply(step)
        outcome = outcomes.attempt(str(flip), partial(outcome_of, folder, read_only=True))
        if outcome:
            outcomes.add(outcome, str(flip))
        flip.apply(step)  # and back
    outcomes.check()


def test_a_run_goes_on_from_the_step_before(
    run_config: RunConfig,
    finished_run: Path,
    copy_of_run: Callable[[], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = copy_of_run()
    (flip,) = random_flips(workdir / "checkpoints" / "20", count=1)
    flip.apply(workdir / "checkpoints" / "20")
    train(run_config, workdir=workdir)
    printed = capsys.readouterr().out
    assert "Checkpoint 20 cannot be read" in printed
    assert "Continuing from step 16" in printed
    assert runs.rows(workdir) == runs.rows(finished_run)
    weights = (workdir / "export" / "model.safetensors").read_bytes()
    assert weights == (finished_run / "export" / "model.safetensors").read_bytes()
    assert [entry.name for entry in (workdir / "unreadable").iterdir()] == ["20"], "kept, aside"
